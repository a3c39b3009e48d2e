"""The ways a command may end badly, each with the exit code that the workflow reads.

Retrying repeats 75 and crashes (1), never 2 and 3: a wrong configuration stays wrong.
"""

from __future__ import annotations


class LowrankError(Exception):
    """A failure that is explained in one sentence; never shown with a traceback."""

    exit_code = 1


class ConfigError(LowrankError):
    """What was asked for cannot be: names the value, its place and what is allowed."""

    exit_code = 2


class IntegrityError(LowrankError):
    """A file is not what its manifest, card or checksum says."""

    exit_code = 3


class UnavailableError(LowrankError):
    """A package index, hub or file that is needed cannot be reached."""

    exit_code = 1


class Preempted(LowrankError):
    """The process was asked to stop; its state is saved and the same command goes on from it."""

    exit_code = 75
