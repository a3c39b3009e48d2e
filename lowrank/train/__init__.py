"""Training: one loop for every chain, checkpoints, packs."""
