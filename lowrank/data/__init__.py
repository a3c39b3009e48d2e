"""From a card to batches: fetch, read, split, tokenise, batch."""
