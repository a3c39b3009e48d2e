"""GaLore: what it is at the ends of its range, its projectors, its state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowrank.methods.galore_optimizer import GaloreOptimizer
from lowrank.methods.galore_projector import bases, sides, state_numel
from tests.galore_steps import spread, steps
from tests.tolerances import BIT_EXACT, FLOAT32_ORTHOGONAL, FLOAT64_IDENTITY, GALORE_ENERGY

PROJECTORS = ["std", "reverse", "left", "right", "full"]
SHAPES = [(7, 5), (5, 7), (6, 6), (3, 8, 5), (2, 4, 9)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("projector", PROJECTORS)
@given(rank=st.integers(1, 9), seed=st.integers(0, 99))
def test_projectors_are_orthonormal_and_hold_the_largest_singular_values(
    shape: tuple[int, ...], projector: Any, rank: int, seed: int
) -> None:
    torch.manual_seed(seed)
    gradient = torch.randn(shape, dtype=torch.float64)
    found = bases(gradient, rank, projector)
    left, right = sides(*shape[-2:], projector)
    assert set(found) == {f"projector_{side}" for side, there in (("left", left), ("right", right)) if there}
    width = min(rank, *shape[-2:])
    projected = gradient
    for key, basis in found.items():
        assert basis.shape == (*shape[:-2], shape[-2 if key == "projector_left" else -1], width)
        FLOAT64_IDENTITY.check(
            basis.mT @ basis, torch.eye(width, dtype=torch.float64).expand(*shape[:-2], width, width)
        )
        assert basis.untyped_storage().nbytes() == basis.nbytes
        projected = basis.mT @ projected if key == "projector_left" else projected @ basis
    energy = torch.linalg.svdvals(gradient)[..., :width].square().sum(-1)
    FLOAT64_IDENTITY.check(projected.square().sum((-2, -1)), energy)


def test_the_gram_matrix_captures_the_energy_of_the_svd_in_float32_and_at_any_scale() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(40, 96)
    largest = torch.linalg.svdvals(gradient)[:8].square().sum()
    for scale in (1.0, 1e-25, 1e25):
        basis = bases(gradient * scale, 8, "std")["projector_left"]
        GALORE_ENERGY.check((basis.T @ gradient).square().sum(), largest)


@given(
    rows=st.integers(1, 24),
    cols=st.integers(1, 24),
    true=st.integers(0, 24),
    share=st.floats(0.05, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["rows", "columns", "stacked"]),
)
def test_a_part_of_the_spectrum_is_the_head_of_the_whole(
    rows: int, cols: int, true: int, share: float, dtype: torch.dtype, layout: str
) -> None:
    """Below half of it and above, where LAPACK is asked otherwise; also of gradients without full rank."""
    inner = min(true, rows, cols)
    gradient = torch.randn(rows, inner, dtype=dtype) @ torch.randn(inner, cols, dtype=dtype)
    gradient = {"rows": gradient, "columns": gradient.mT.contiguous().mT, "stacked": torch.stack([gradient] * 2)}[
        layout
    ]
    rank = max(1, round(share * min(rows, cols)))
    (basis,) = bases(gradient, rank, "std").values()
    assert basis.shape == (*gradient.shape[:-2], min(rows, cols), rank)
    FLOAT32_ORTHOGONAL.check(basis.mT @ basis, torch.eye(rank, dtype=dtype).expand(*basis.shape[:-2], rank, rank))
    held = (gradient @ basis if rows >= cols else basis.mT @ gradient).double().square().sum((-2, -1))
    best = torch.linalg.svdvals(gradient.double())[..., :rank].square().sum(-1)
    GALORE_ENERGY.check(held, best)


def test_a_gradient_that_is_zero_or_not_finite_still_gets_a_basis() -> None:
    for value in (0.0, float("nan"), float("inf")):
        basis = bases(torch.full((5, 3), value), 2, "full")
        for columns in basis.values():
            assert torch.isfinite(columns).all()


@given(
    shape=st.sampled_from(SHAPES),
    projector=st.sampled_from(PROJECTORS),
    decay=st.sampled_from([0.0, 0.1]),
    conv=st.booleans(),
)
def test_full_rank_with_sgd_is_sgd(shape: tuple[int, ...], projector: Any, decay: float, conv: bool) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape, dtype=torch.float64)
    start = start.mT.contiguous().mT if conv else start  # a weight stored with other strides
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    gradients = [torch.randn(shape, dtype=torch.float64) for _ in range(5)]
    # Projecting both sides, or the longer one, loses nothing either: the gradient has no rank beyond the shorter.
    # With the basis of another step it would, so each step takes its own.
    options: Any = {"rank": 99, "update_gap": 1, "scale": 1.0, "projector": projector, "base": "sgd"}
    optimizer = GaloreOptimizer([ours], [], lr=0.1, weight_decay=decay, **options)
    steps(ours, optimizer, gradients)
    steps(theirs, torch.optim.SGD([theirs], lr=0.1, weight_decay=decay), gradients)
    FLOAT64_IDENTITY.check(ours, theirs)


@pytest.mark.parametrize("base", ["adamw", "adam"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_identity_projector_is_the_base_optimizer(base: Any, decay: float) -> None:
    torch.manual_seed(0)
    start = torch.randn(6, 4, dtype=torch.float64)
    gradients = [torch.randn(6, 4, dtype=torch.float64) for _ in range(6)]
    peer = torch.optim.AdamW if base == "adamw" else torch.optim.Adam
    ends = []
    for make_optimizer in (
        lambda p: GaloreOptimizer([p], [], rank=2, scale=1.0, projector="identity", base=base, weight_decay=decay),
        lambda p: GaloreOptimizer([], [p], rank=2, base=base, weight_decay=decay),
        lambda p: peer([p], weight_decay=decay),
    ):
        parameter = nn.Parameter(start.clone())
        steps(parameter, make_optimizer(parameter), gradients)
        ends.append(parameter)
    FLOAT64_IDENTITY.check(ends[0], ends[2])
    FLOAT64_IDENTITY.check(ends[1], ends[2])


def test_a_rotated_basis_changes_adam() -> None:
    """At full rank the projection is a rotation: nothing to SGD, another optimizer to Adam."""
    torch.manual_seed(0)
    start = torch.randn(6, 4, dtype=torch.float64)
    gradients = [torch.randn(6, 4, dtype=torch.float64) for _ in range(3)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    steps(ours, GaloreOptimizer([ours], [], rank=4, scale=1.0), gradients)
    steps(theirs, torch.optim.AdamW([theirs], weight_decay=0.0), gradients)
    assert (ours - theirs).abs().max() > 1e-4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("projector", PROJECTORS)
def test_between_two_switches_the_updates_span_no_more_than_the_rank(shape: tuple[int, ...], projector: Any) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    optimizer = GaloreOptimizer([parameter], [], rank=2, update_gap=4, projector=projector, lr=1.0)
    updates = steps(parameter, optimizer, [torch.randn(shape, dtype=torch.float64) for _ in range(8)])
    for total in (torch.stack(updates[:4]).sum(0), torch.stack(updates[4:]).sum(0)):
        assert (torch.linalg.matrix_rank(total, rtol=1e-10) <= 2).all()
    assert (torch.linalg.matrix_rank(torch.stack(updates).sum(0), rtol=1e-10) > 2).all()


def test_a_basis_lasts_for_update_gap_steps_and_moments_are_carried_over() -> None:
    parameter = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    optimizer = GaloreOptimizer([parameter], [], rank=2, update_gap=2)
    seen, moments = [], []
    for seed in range(4):
        steps(parameter, optimizer, [spread((5, 4), seed, torch.float64)])
        seen.append(optimizer.state[parameter]["projector_right"].clone())
        moments.append(optimizer.state[parameter]["exp_avg"].clone())
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[1], seen[2])
    # Not rotated into the new basis: the old numbers are averaged with the newly projected gradient.
    FLOAT64_IDENTITY.check(moments[2], 0.9 * moments[1] + 0.1 * spread((5, 4), 2, torch.float64) @ seen[2])


@pytest.mark.parametrize("projector", [*PROJECTORS, "identity"])
@given(rows=st.integers(1, 9), cols=st.integers(1, 9), rank=st.integers(1, 9))
def test_the_state_has_the_size_of_the_formula(projector: Any, rows: int, cols: int, rank: int) -> None:
    parameter = nn.Parameter(torch.randn(rows, cols))
    optimizer = GaloreOptimizer([parameter], [], rank=rank, projector=projector)
    steps(parameter, optimizer, [torch.randn(rows, cols)])
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
    held = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert held == 4 * state_numel(rows, cols, rank, projector)
    if projector == "std":
        short, long, rank = min(rows, cols), max(rows, cols), min(rank, rows, cols)
        assert held == 4 * (short * rank + 2 * long * rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("base", ["adamw", "adam", "sgd", "adamw8bit"])
@pytest.mark.parametrize("projector", ["std", "full", "identity"])
def test_resumes_bit_for_bit(base: Any, projector: Any, dtype: torch.dtype) -> None:
    if base == "adamw8bit" and dtype == torch.float64:
        dtype = torch.float16  # the kernel knows three types; double is not one of them
    torch.manual_seed(0)
    shapes = [(80, 96), (2, 8, 6), (80,)]
    starts = [torch.randn(shape).to(dtype) for shape in shapes]
    gradients = [[torch.randn(shape).to(dtype) for shape in shapes] for _ in range(7)]

    def begin(values: list[Tensor]) -> tuple[list[nn.Parameter], GaloreOptimizer]:
        parameters = [nn.Parameter(value.clone()) for value in values]
        options: Any = {"rank": 64, "update_gap": 3, "base": base, "projector": projector, "weight_decay": 0.1}
        return parameters, GaloreOptimizer(parameters[:2], parameters[2:], **options)

    def go(parameters: list[nn.Parameter], optimizer: GaloreOptimizer, some: list[list[Tensor]]) -> None:
        for row in some:
            for parameter, gradient in zip(parameters, row, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()

    straight, optimizer = begin(starts)
    go(straight, optimizer, gradients[:4])
    saved, weights = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in straight]
    go(straight, optimizer, gradients[4:])
    resumed, optimizer = begin(weights)
    optimizer.load_state_dict(saved)
    go(resumed, optimizer, gradients[4:])
    for got, wanted in zip(resumed, straight, strict=True):
        BIT_EXACT.check(got, wanted)
    for state in saved["state"].values():
        assert all(isinstance(value, Tensor | int) for value in state.values())


def test_stacked_slices_equal_the_same_slices_alone() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 6, 5, dtype=torch.float64), list(torch.randn(5, 3, 6, 5, dtype=torch.float64))
    stacked = nn.Parameter(start.clone())
    steps(stacked, GaloreOptimizer([stacked], [], rank=2, update_gap=2), gradients)
    for index in range(3):
        alone = nn.Parameter(start[index].clone())
        steps(alone, GaloreOptimizer([alone], [], rank=2, update_gap=2), [gradient[index] for gradient in gradients])
        FLOAT64_IDENTITY.check(stacked[index], alone)


def test_a_learning_rate_that_the_loop_sets_is_used() -> None:
    parameter = nn.Parameter(torch.ones(4, 3))
    optimizer = GaloreOptimizer([parameter], [], rank=2)
    optimizer.param_groups[0]["lr"] = 0.0
    steps(parameter, optimizer, [torch.randn(4, 3)])
    BIT_EXACT.check(parameter, torch.ones(4, 3))
