"""Peak memory of the process and of the CUDA allocator."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def rss_bytes() -> int | None:
    """Resident memory of this process now; None where the kernel does not say."""
    return _status("VmRSS")


def _status(field: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _reset_peak() -> bool:
    """Sets the kernel's peak (VmHWM) back to what is resident now; False where it cannot be set back."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def keep_freed_memory() -> None:
    """Has this process keep up to half a gigabyte of what it frees; for a job, which allocates the same in every step.

    By default glibc gives freed memory back to the kernel early, which clears every page of what is taken next: a tenth
    of a step's time where four members' activations lie side by side. Blocks of 32 MiB and more are given back still,
    as they are by default. Where glibc is not, or the work is a GPU's, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not torch.cuda.is_available():
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 512 * 2**20)


def _release_freed_pages() -> None:
    """Gives freed heap pages back, so that reusing them shows as growth."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@dataclass
class PeakMemory:
    """Peak memory over a `with` block.

    The kernel itself keeps the peak of resident memory, so nothing is sampled and nothing is missed.
    It has one such mark per process: blocks do not nest. Only Linux can set the mark back; elsewhere
    the resident figures are None rather than an estimate.

    Attributes:
        rss_bytes: highest resident memory within the block.
        rss_growth_bytes: that, less what was resident at its start.
        cuda_bytes: highest allocation on `device` within the block, None without CUDA.
    """

    device: torch.device | None = None
    rss_bytes: int | None = None
    rss_growth_bytes: int | None = None
    cuda_bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        _release_freed_pages()
        self._known = _reset_peak()
        self._baseline = rss_bytes()
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._known and self._baseline is not None:
            self.rss_bytes = _status("VmHWM")
            if self.rss_bytes is not None:
                self.rss_growth_bytes = max(0, self.rss_bytes - self._baseline)
        if self._on_cuda:
            self.cuda_bytes = torch.cuda.max_memory_allocated(self.device)

    @property
    def _on_cuda(self) -> bool:
        return self.device is not None and self.device.type == "cuda"
