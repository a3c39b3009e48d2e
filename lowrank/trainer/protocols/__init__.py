"""Protocols that need the Hugging Face Trainer, which stands above `lowrank.evaluate`; found by name as the others."""
