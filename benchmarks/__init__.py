"""Benchmarks: every method beside its peers, in one process, paired round by round."""

import os

# Before torch is imported, as for the project's own jobs: threads that wait must not burn a core that others need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
