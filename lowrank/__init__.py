"""Low-rank training: methods as chains of parts, and a pipeline that checks what five documents say of them.

import lowrank

chain = lowrank.attach(model, "lora", rank=8, alpha=16, targets=["q_lin", "v_lin"])
...
lowrank.merge(model)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank.api import attach, load, merge, save, set_layers, trainable_parameters, unmerge
    from lowrank.methods.chain import Chain

__version__ = "0.1.0"

__all__ = ["Chain", "attach", "load", "merge", "save", "set_layers", "trainable_parameters", "unmerge"]


def __getattr__(name: str) -> Any:
    # Looked up when it is used, so that `import lowrank` loads no torch.
    if name not in __all__:
        raise AttributeError(f"module 'lowrank' has no attribute {name!r}")
    return getattr(importlib.import_module("lowrank.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
