"""The protocols: each file is one way to look at a trained run, found by its name."""
