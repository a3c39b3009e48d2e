"""The projectors of GaLore: which sides, which vectors, how many numbers, and the way back."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Projector = Literal["std", "reverse", "left", "right", "full", "identity"]


def sides(rows: int, cols: int, projector: Projector) -> tuple[bool, bool]:
    """Whether the rows (left) and the columns (right) of a gradient are projected.

    `std` projects the shorter side (the columns where rows >= cols), `reverse` the longer one.
    """
    if projector == "std":
        return (False, True) if rows >= cols else (True, False)
    if projector == "reverse":
        return (True, False) if rows >= cols else (False, True)
    return projector in ("left", "full"), projector in ("right", "full")


def state_numel(rows: int, cols: int, rank: int, projector: Projector = "std") -> int:
    """Numbers that Adam's moments and the projectors of one (rows, cols) matrix hold.

    For `std` with n = min(rows, cols) and m = max(rows, cols): n r + 2 m r. Steps are not counted.
    """
    rank = min(rank, rows, cols)
    left, right = sides(rows, cols, projector)
    projected = (rank if left else rows) * (rank if right else cols)
    return 2 * projected + left * rows * rank + right * cols * rank


def bases(gradient: Tensor, rank: int, projector: Projector) -> dict[str, Tensor]:
    """Leading singular vectors of a gradient, for the sides that are projected.

    The short side comes from the eigenvectors of the Gram matrix, which hold the same energy as the
    SVD's at a fraction of its time; the long side is the orthonormal part of the gradient times those.
    The largest entry of each column is positive, so that the basis depends on no LAPACK build.

    Args:
        gradient: (..., rows, cols).
        rank: vectors wanted; at most min(rows, cols) are returned.
        projector: which sides.

    Returns:
        `projector_left` (..., rows, rank) and `projector_right` (..., cols, rank), as needed, in the
        gradient's dtype, each with storage of its own, largest singular value first.
    """
    rows, cols = gradient.shape[-2:]
    left, right = sides(rows, cols, projector)
    if not (left or right):
        return {}
    work = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    # Divided by its largest entry, because squares of small gradients leave float32's range. A gradient
    # that is not finite gets some basis: its update is not finite either, and the loop calls it diverged.
    largest = torch.linalg.vector_norm(work, torch.inf, (-2, -1), keepdim=True)
    work = (work / largest.clamp_min(torch.finfo(work.dtype).tiny)).nan_to_num_(0.0, 0.0, 0.0)
    tall = rows >= cols
    upright = work if tall else work.mT
    short = _signed(right_singular_vectors(upright, min(rank, upright.shape[-1])))
    found = {"projector_right" if tall else "projector_left": short}
    if left if tall else right:
        long = _signed(torch.linalg.qr(upright @ short).Q)
        found["projector_left" if tall else "projector_right"] = long
    kept = {"projector_left": left, "projector_right": right}
    return {key: value.to(gradient.dtype).contiguous() for key, value in found.items() if kept[key]}


@torch.library.custom_op("lowrank::right_singular_vectors", mutates_args=())
def right_singular_vectors(upright: Tensor, count: int) -> Tensor:
    """The leading eigenvectors of the Gram matrix, largest first: (..., m, n) -> (..., n, count), for m >= n."""
    vectors: Tensor = torch.linalg.eigh(upright.mT @ upright).eigenvectors
    return vectors.flip(-1)[..., :count].contiguous()


@right_singular_vectors.register_kernel("cpu")
def _(upright: Tensor, count: int) -> Tensor:
    # LAPACK as scipy opens it up: one triangle of the Gram matrix, and only the part of the spectrum that is
    # wanted, where torch computes all of both.
    from scipy.linalg import blas, eigh

    rows, size = upright.shape[-2:]
    triangle = blas.ssyrk if upright.dtype == torch.float32 else blas.dsyrk
    part = [size - count, size - 1] if 2 * count <= size else None  # all of it is found faster without bounds
    driver = "evd" if part is None else "evr"
    found = []
    for one in upright.reshape(-1, rows, size).numpy():
        # Either way it is A^T A; what lies in memory as LAPACK wants it is not copied.
        gram = triangle(1.0, one, trans=1) if one.flags.f_contiguous else triangle(1.0, one.T)
        vectors = eigh(gram, lower=False, driver=driver, subset_by_index=part, check_finite=False, overwrite_a=True)[1]
        found.append(torch.from_numpy(vectors[:, ::-1][:, :count].copy()))
    return torch.stack(found).reshape(*upright.shape[:-2], size, count)


@right_singular_vectors.register_fake
def _(upright: Tensor, count: int) -> Tensor:
    return upright.new_empty((*upright.shape[:-2], upright.shape[-1], count))


def _signed(columns: Tensor) -> Tensor:
    largest = columns.gather(-2, columns.abs().argmax(-2, keepdim=True))
    return columns * torch.where(largest < 0, -1.0, 1.0).to(columns.dtype)


def fold_(
    parameter: Tensor, direction: Tensor, left: Tensor | None, right: Tensor | None, *, beta: float, alpha: float
) -> None:
    """W <- beta W + alpha P N Q^T, in place; one fused product where one side is projected."""
    if left is None and right is None:
        parameter.mul_(beta).add_(direction, alpha=alpha)
        return
    if left is None:
        first, second = direction, right.mT  # type: ignore[union-attr]
    else:
        first, second = (left, direction) if right is None else (left @ direction, right.mT)
    product = parameter.addmm_ if parameter.ndim == 2 else parameter.baddbmm_
    product(first, second, beta=beta, alpha=alpha)
