"""Evaluation: scores under a stated protocol, apart from training."""
