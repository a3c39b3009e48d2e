"""bitsandbytes, imported when it is first needed."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily


@functools.cache
def bnb() -> Any:
    """The package `bitsandbytes`. Importing it takes seconds, and every process loads every part."""
    # Where its optional inference kernel is absent it says so as a warning; nothing here uses that kernel.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


@functools.cache
def dynamic_map(device: torch.device, *, signed: bool = True) -> Tensor:
    """The 256 values that an 8-bit code stands for: (256,) float32, ascending."""
    # A prediction asks under fake tensors, which have no values; a cached table has to be a real one.
    with unset_fake_temporarily():
        table: Tensor = bnb().functional.create_dynamic_map(signed=signed).to(device)
    return table
