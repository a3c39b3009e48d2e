"""The observers: each file is one way to look at a run while it trains, found by its name."""
