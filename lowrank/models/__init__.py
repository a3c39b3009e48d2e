"""Base models, loaded from fetched files."""
