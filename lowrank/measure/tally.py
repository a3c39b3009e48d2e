"""Counts what a step does, kernel by kernel: bytes alive, operations, bytes moved."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lowrank.measure.flops import FlopCounter
from lowrank.measure.storages import tensors_in

MOVES_NOTHING = frozenset(f"aten::{name}" for name in ("empty", "empty_like", "new_empty", "_unsafe_view"))
"""What gives a tensor out and neither reads nor writes one, beside views and questions to a tensor (`prim`)."""

Work = tuple[tuple[int, int, int], ...]
"""(operations, bytes read and written, how many kernels are like this), sorted."""


class Tally(TorchDispatchMode):
    """Watches the kernels inside its `with` block, on real or fake tensors.

    A storage is alive from the kernel that makes it until Python and autograd let go of it. What a kernel
    allocates for itself and frees again is not seen.

    Args:
        held: tensors that are there before the block, and count as alive.

    Attributes:
        peak_bytes: most bytes alive at once.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._formulas = FlopCounter().flop_registry
        self._sizes: dict[int, int] = {}
        self._alive = 0
        self.peak_bytes = 0
        self._kernels: Counter[tuple[int, int]] = Counter()
        for tensor in held:
            self._see(tensor)

    @property
    def work(self) -> Work:
        """The kernels so far, views left out."""
        return tuple(sorted((*kernel, count) for kernel, count in self._kernels.items()))

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._alive += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self._alive)
            # The Python object of a storage lives exactly as long as the storage.
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._alive -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = list(tensors_in(result))
        for tensor in made:
            self._see(tensor)
        if not (func.is_view or func.namespace == "prim" or func._schema.name in MOVES_NOTHING):
            read = tensors_in([*args, *(kwargs or {}).values()])
            count = self._formulas.get(func.overloadpacket)
            flops = 0 if count is None else int(count(*args, **(kwargs or {}), out_val=result))
            self._kernels[flops, sum(map(_bytes, [*read, *made]))] += 1
        return result


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def flops(work: Work) -> int:
    """Operations of all kernels."""
    return sum(flops * count for flops, _, count in work)


def seconds(work: Work, flops_per_s: float, bytes_per_s: float, kernel_s: float) -> float:
    """How long kernels take one after another, each bounded by one of three: arithmetic, memory, or its start.

    t = sum over kernels of max(flops / flops_per_s, bytes / bytes_per_s, kernel_s)

    Source: the roofline model (Williams, Waterman and Patterson, 2009), with a floor for what starts a kernel.

    Args:
        work: from a `Tally`.
        flops_per_s: operations a second that products reach.
        bytes_per_s: bytes a second that memory gives.
        kernel_s: seconds to start a kernel.
    """
    return sum(count * max(flops / flops_per_s, moved / bytes_per_s, kernel_s) for flops, moved, count in work)
