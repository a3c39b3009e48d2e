"""bitsandbytes, imported when it is first needed."""

from __future__ import annotations

import functools
import logging
from typing import Any


@functools.cache
def bnb() -> Any:
    """The package `bitsandbytes`. Importing it takes seconds, and every process loads every part."""
    # Where its optional inference kernel is absent it says so as a warning; nothing here uses that kernel.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes
