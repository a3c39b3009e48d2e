"""GaLore: what it is at the ends of its range, its projectors, its state, and galore-torch."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes
import galore_torch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.methods.chain import Chain
from lowrank.methods.galore_optimizer import GaloreOptimizer
from lowrank.methods.galore_projector import bases, sides, state_numel
from lowrank.spec import TrainSpec
from lowrank.targets import linear_names
from tests.chain_runs import attach, snapshot, train
from tests.tiny_models import FAMILIES, batch, make
from tests.tolerances import BIT_EXACT, FLOAT64_IDENTITY, GALORE_8BIT_PEER, GALORE_ENERGY, GALORE_PEER

PROJECTORS = ["std", "reverse", "left", "right", "full"]
SHAPES = [(7, 5), (5, 7), (6, 6), (3, 8, 5), (2, 4, 9)]


def galore(**options: Any) -> dict[str, Any]:
    return {"part": "galore", "rank": 4, "update_gap": 3, **options}


def spec(**values: Any) -> TrainSpec:
    return TrainSpec(**{"lr": 1e-2, "steps": 1, **values})


def steps(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> list[Tensor]:
    """The update of each step."""
    updates = []
    for gradient in gradients:
        before = parameter.detach().clone()
        parameter.grad = gradient.clone()
        optimizer.step()
        updates.append(parameter.detach() - before)
    return updates


def spread(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A gradient whose singular values lie well apart, so that its singular vectors are well defined."""
    torch.manual_seed(seed)
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = 2.0 ** -torch.arange(left.shape[-1], dtype=torch.float64)
    return ((left * values) @ right).to(dtype)


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


def test_galore_torch_keeps_the_whole_svd_alive_where_this_does_not() -> None:
    parameter = nn.Parameter(torch.randn(12, 48))
    peer = galore_peer(parameter, "std", 2)
    steps(parameter, peer, [torch.randn(12, 48)])
    assert peer.state[parameter]["projector"].ortho_matrix.untyped_storage().nbytes() == 4 * 12 * 12
    assert state_numel(12, 48, 2) == 12 * 2 + 2 * 2 * 48


def galore_peer(parameter: nn.Parameter, projector: str, rank: int, gap: int = 5, **values: Any) -> Any:
    kind = {"reverse": "reverse_std"}.get(projector, projector)
    group = {"params": [parameter], "rank": rank, "update_proj_gap": gap, "scale": 0.5, "proj_type": kind}
    return galore_torch.GaLoreAdamW([group], no_deprecation_warning=True, **{"lr": 1e-2, "eps": 1e-30, **values})


@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (12, 12)])
@pytest.mark.parametrize("projector", PROJECTORS)
def test_updates_equal_galore_torch_within_a_basis(shape: tuple[int, int], projector: Any) -> None:
    """Signs of singular vectors cancel in an update, so updates are compared, and up to the first switch.

    A switch carries moments over to vectors whose signs the peer leaves to LAPACK; from there on two
    correct implementations differ. eps is tiny, since the two add it in different places; so the first
    step with both sides projected is left out: there R is diagonal, and Adam steps by the rounding beside it.
    """
    torch.manual_seed(1)
    start = torch.randn(shape)
    gradients = [spread(shape, 0)] + [torch.randn(shape) for _ in range(4)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options: Any = {"rank": 4, "update_gap": 5, "scale": 0.5, "projector": projector, "lr": 1e-2, "eps": 1e-30}
    expected = steps(theirs, galore_peer(theirs, projector, 4), gradients)
    found = steps(ours, GaloreOptimizer([ours], [], **options), gradients)
    for step in range(1 if projector == "full" else 0, len(gradients)):
        GALORE_PEER.check(found[step], expected[step])


def test_eps_is_added_to_the_corrected_root_and_decay_uses_the_weight_before_the_step() -> None:
    """The two places where galore-torch differs from torch's AdamW; its numbers follow from ours by formula."""
    gradient, start, eps, lr, decay = spread((6, 4), 0), torch.ones(6, 4), 0.05, 0.1, 0.2
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    correction = (1 - 0.999) ** 0.5
    options: Any = {"rank": 2, "scale": 0.5, "lr": lr, "weight_decay": decay}
    steps(ours, GaloreOptimizer([ours], [], eps=eps / correction, **options), [gradient])
    steps(theirs, galore_peer(theirs, "std", 2, eps=eps, lr=lr, weight_decay=decay), [gradient])
    update = ours - (1 - lr * decay) * start
    GALORE_PEER.check(theirs, (1 - lr * decay) * (start + update))


def test_galore_torch_mixes_up_the_sides_of_reverse_at_full_rank() -> None:
    parameter = nn.Parameter(torch.randn(4, 6))
    with pytest.raises(RuntimeError):
        steps(parameter, galore_peer(parameter, "reverse", 4), [torch.randn(4, 6)])


def test_eight_bit_moments_are_those_of_bitsandbytes() -> None:
    """On the projected gradient, and on a parameter without a projector; small ones stay in float32."""
    torch.manual_seed(0)
    gradients = [torch.randn(128, 80) for _ in range(4)]
    ours, plain, small = (nn.Parameter(torch.zeros(s)) for s in ((128, 80), (128, 80), (10, 10)))
    optimizer = GaloreOptimizer([ours], [plain, small], rank=64, scale=1.0, base="adamw8bit", lr=1e-2, update_gap=9)
    alone, inside = nn.Parameter(torch.zeros(128, 80)), nn.Parameter(torch.zeros(128, 64))
    peer = bitsandbytes.optim.AdamW8bit([alone, inside], lr=1e-2, weight_decay=0.0)
    for gradient in gradients:
        ours.grad, plain.grad, small.grad = gradient.clone(), gradient.clone(), gradient[:10, :10].clone()
        optimizer.step()
        basis = optimizer.state[ours]["projector_right"]
        alone.grad, inside.grad = gradient.clone(), gradient @ basis
        peer.step()
    BIT_EXACT.check(plain, alone)
    GALORE_8BIT_PEER.check(ours, inside @ basis.T)
    assert {value.dtype for value in optimizer.state[ours].values() if isinstance(value, Tensor)} == {
        torch.uint8,
        torch.float32,
    }
    assert "codes_1" not in optimizer.state[small]


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


@pytest.mark.parametrize("family", FAMILIES)
def test_projects_the_matrices_of_the_trunk_and_nothing_else(family: str) -> None:
    model = make(family)
    names = linear_names(model, head=False)
    chain = attach(model, "full", galore())
    optimizer = chain.optimizer(spec())
    projected, plain = (group["params"] for group in optimizer.param_groups)
    assert {id(p) for p in projected} == {id(model.get_submodule(name).weight) for name in names}
    assert len(projected) + len(plain) == len(list(model.parameters()))
    assert sum(p.numel() for p in projected + plain) == sum(p.numel() for p in model.parameters())
    before = snapshot(model)
    train(model, chain, optimizer, [batch(family, 4, seed) for seed in range(2)])
    for name in names:
        assert not torch.equal(before[f"{name}.weight"], model.state_dict()[f"{name}.weight"]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_sgd_through_a_model_is_sgd(family: str) -> None:
    ends = []
    for owned in (True, False):
        model = make(family)
        part = galore(rank=16, scale=1.0, optimizer="sgd", update_gap=2, excess_rank="clip")
        chain = attach(model, "full", *([part] if owned else []))
        optimizer = chain.optimizer(spec(lr=0.1)) if owned else torch.optim.SGD(chain.trainable().values(), lr=0.1)
        train(model, chain, optimizer, [batch(family, 4, seed) for seed in range(3)])
        ends.append(snapshot(model))
    for name, tensor in ends[0].items():
        FLOAT64_IDENTITY.check(tensor, ends[1][name])


def test_accumulation_gives_the_weights_of_one_large_batch() -> None:
    ends = []
    for micro in (8, 2):
        model = make("gpt2")
        chain = attach(model, "full", galore(scale=1.0, optimizer="sgd", update_gap=2))
        train(model, chain, chain.optimizer(spec(lr=0.1)), [batch("gpt2", 8, seed) for seed in range(4)], micro=micro)
        ends.append(snapshot(model))
    for name, tensor in ends[0].items():
        FLOAT64_IDENTITY.check(tensor, ends[1][name])


def test_stacked_heads_are_projected_one_by_one() -> None:
    model = make("gpt2")
    chain = attach(model, {"part": "lte", "num_lora_heads": 4, "rank": 3, "merge_every": 2}, galore(rank=2))
    optimizer = chain.optimizer(spec())
    projected = optimizer.param_groups[0]["params"]
    assert {p.ndim for p in projected} == {3}
    train(model, chain, optimizer, [batch("gpt2", 8, seed) for seed in range(5)])
    for parameter in projected:
        state = optimizer.state[parameter]
        heads, rows, cols = parameter.shape
        assert heads == 4
        held = sum(value.numel() for value in state.values() if isinstance(value, Tensor))
        assert held == heads * state_numel(rows, cols, 2)


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


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([galore()], r"chain galore trains no weight matrix"),
        (["full", galore(rank=17)], r"rank 17 is too large for 'transformer.h.0.attn.c_attn'; allowed: 1 to 16"),
        ([{"part": "lte", "rank": 2}, galore(rank=3)], r"rank 3 is too large .*allowed: 1 to 2, or excess_rank: clip"),
        (["full", galore(targets="c_atn")], r"'c_atn' matches no module.*did you mean 'c_attn'"),
    ],
)
def test_refuses_with_the_layer_and_the_limit(parts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attach(make("gpt2"), *parts)


def test_refuses_a_linear_probe() -> None:
    with pytest.raises(ConfigError, match=r"chain linear_probe.galore trains no weight matrix"):
        attach(make("bert"), "linear_probe", galore())


def test_refuses_targets_that_the_chain_does_not_train() -> None:
    chain = attach(make("gpt2"), {"part": "lora", "targets": "c_fc", "rank": 4}, galore(targets="c_attn"))
    with pytest.raises(ConfigError, match=r"no matrix of the targets c_attn trains; 4 other parameters do"):
        chain.optimizer(spec())


def test_an_excess_rank_is_cut_where_that_is_asked_for() -> None:
    model = make("gpt2")
    chain: Chain = attach(model, {"part": "lora", "rank": 4}, galore(rank=512, excess_rank="clip"))
    optimizer = chain.optimizer(spec())
    train(model, chain, optimizer, [batch("gpt2", 4)])
    for parameter in optimizer.param_groups[0]["params"]:
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


@pytest.mark.parametrize("option", [{"rank": 0}, {"scale": 0}, {"update_gap": 0}, {"projector": "std_reverse"}])
def test_refuses_options_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(option))):
        attach(make("gpt2"), "full", galore(**option))
