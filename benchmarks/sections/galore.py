"""GaLore's optimizer beside galore-torch's: time within a training step, state, and the taking of a basis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.device import device
from benchmarks.models import TRAIN, Arm, ChainArm, Shape, Size
from benchmarks.paired import alternate
from benchmarks.records import ArmResult, Goal, Section, Spread
from lowrank.measure.storages import storage_bytes, tensors_in
from lowrank.methods.galore_projector import bases, state_numel

NEVER = 10**6
"""Steps between two bases, so that no timed step takes one."""


def run(size: Size) -> Section:
    shape, rank = size.distilbert, size.rank
    arms = {"galore-torch": peer(shape, rank), "full+galore": ours(shape, rank)}
    for arm in arms.values():
        arm()
    kinds = Counter((p.shape[0], p.shape[1]) for p in matrices(arms["full+galore"].model))
    steps: dict[str, Callable[[], object]] = {name: arm.optimizer.step for name, arm in arms.items()}
    steps["products alone"] = products_alone(kinds, rank)
    # Within a training step, since a lone optimizer finds other memory: there galore-torch is slower.
    prepare: dict[str, Callable[[], object]] = {name: partial(backward, arm) for name, arm in arms.items()}
    times = alternate(steps, 2 * size.rounds, warm=True, prepare={**prepare, "products alone": lambda: None})
    floor = times.ratio("products alone", "galore-torch").median
    state = {name: projected_bytes(arm) for name, arm in arms.items()}
    formula = 4 * sum(count * state_numel(*kind, rank) for kind, count in kinds.items())
    taking, by_shape, missed = refresh(kinds, rank, size.rounds)
    goals = (
        Goal(
            id="G7",
            what="GaLore's optimizer step, of galore-torch's (D)",
            measured=times.ratio("full+galore", "galore-torch"),
            at_most=0.60,
            note=f"The two products of each matrix with its basis, which both compute, take {floor:.2f} alone.",
        ),
        Goal(
            id="G7",
            what="GaLore's state for the matrices, of the formula n r + 2 m r (D)",
            measured=Spread.exact(state["full+galore"] / formula),
            at_most=1.0,
        ),
        Goal(
            id="G7",
            what="GaLore, taking all bases, of an SVD of the same matrices (D)",
            measured=taking,
            at_most=0.25,
            note=by_shape,
        ),
        Goal(
            id="G7",
            what="GaLore, energy that its basis misses beside an SVD's, as a share (D)",
            measured=Spread.exact(missed),
            at_most=0.001,
        ),
    )
    results = [
        ArmResult(name=f"{name}, optimizer only", step_ms=times.step_ms(name), state_bytes=state.get(name))
        for name in steps
    ]
    setting = f"{shape}; float32, rank {rank}; the optimizer's part of a step, and its state for the projected matrices"
    return Section(title="GaLore", setting=setting, arms=tuple(results), goals=goals)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices that are projected: those of the blocks."""
    return [p for name, p in model.named_parameters() if ".layer." in name and p.ndim == 2]


def ours(shape: Shape, rank: int) -> Arm:
    return ChainArm(shape.model(), shape.batch(), "full", {"part": "galore", "rank": rank, "update_gap": NEVER})


def peer(shape: Shape, rank: int) -> Arm:
    from galore_torch import GaLoreAdamW

    model = shape.model()
    projected = matrices(model)
    held = {id(parameter) for parameter in projected}
    galore = {"params": projected, "rank": rank, "update_proj_gap": NEVER, "scale": 0.25, "proj_type": "std"}
    plain = {"params": [parameter for parameter in model.parameters() if id(parameter) not in held]}
    return Arm(model, GaLoreAdamW([galore, plain], lr=TRAIN.lr, no_deprecation_warning=True), shape.batch())


def backward(arm: Arm) -> None:
    arm.optimizer.zero_grad(set_to_none=True)
    arm.forward().backward()


def products_alone(kinds: Counter[tuple[int, int]], rank: int) -> Callable[[], None]:
    """Gradient times basis, and the step times basis onto the weight, for every matrix."""
    made = {kind: [torch.randn(size, device=device()) for size in (kind, kind, (min(kind), rank))] for kind in kinds}

    def step() -> None:
        for kind, count in kinds.items():
            weight, gradient, basis = made[kind]
            for _ in range(count):
                if kind[0] >= kind[1]:
                    weight.addmm_(gradient @ basis, basis.t(), alpha=1e-9)
                else:
                    weight.addmm_(basis, basis.t() @ gradient, alpha=1e-9)

    return step


def projected_bytes(arm: Arm) -> int:
    """Storages of what the optimizer keeps for the projected matrices."""
    return storage_bytes(tensors_in([arm.optimizer.state[parameter] for parameter in matrices(arm.model)]))


def refresh(kinds: Counter[tuple[int, int]], rank: int, rounds: int) -> tuple[Spread, str, float]:
    """Time of all bases over that of all SVDs, what the shapes say of it, and the share of energy missed."""
    samples = {kind: torch.randn(kind, device=device()) for kind in kinds}
    steps: dict[str, Callable[[], object]] = {}
    for kind, sample in samples.items():
        steps[f"bases {kind}"] = partial(bases, sample, rank, "std")
        steps[f"svd {kind}"] = partial(torch.linalg.svd, sample, full_matrices=False)
    times = alternate(steps, rounds, one_by_one=True)
    total = {
        what: [sum(n * times.seconds[f"{what} {kind}"][i] for kind, n in kinds.items()) for i in range(rounds)]
        for what in ("bases", "svd")
    }
    spread = Spread.of([a / b for a, b in zip(total["bases"], total["svd"])])
    told = [
        f"{times.ratio(f'bases {kind}', f'svd {kind}').median:.2f} for {count} of {kind[0]} x {kind[1]}"
        for kind, count in kinds.items()
    ]
    return spread, f"By shape: {', '.join(told)}.", max(_missed(sample, rank) for sample in samples.values())


def _missed(sample: Tensor, rank: int) -> float:
    found = bases(sample, rank, "std")
    projected = sample @ found["projector_right"] if "projector_right" in found else found["projector_left"].mT @ sample
    best: float = torch.linalg.svdvals(sample.double())[:rank].square().sum().item()
    held: float = projected.double().square().sum().item()
    return max(0.0, 1 - held / best)
