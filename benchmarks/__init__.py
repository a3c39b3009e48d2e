"""Benchmarks: every method beside its peers, in one process, paired round by round."""
