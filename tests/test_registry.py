"""What holds for every part that the registry finds, alone or in the least company it needs, and for known chains.

A new part is covered by being discovered. On models of every family, in float32, as they are used.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank import registry
from lowrank.compositions import CHAINS, SMALL, least_chain, small
from lowrank.errors import ConfigError
from lowrank.methods.chain import Chain
from lowrank.spec import TrainSpec
from tests.chain_runs import logits, snapshot, train
from tests.tiny_models import FAMILIES, batch, make
from tests.tolerances import BIT_EXACT, MERGE, PEER_GRADIENT

LAYERS = {"gpt2": "c_attn,attn.c_proj", "nanogpt": "c_attn,c_out"}
"""Where a family has no separate v and down, the layers that VeLoRA is given."""

NOT_FOR = {
    "linear_probe": {"gpt2", "llama", "nanogpt"},
    "contextual_sparsity": {"nanogpt"},
}
"""Part -> families that it refuses: without a head, or of unknown blocks."""

STEPS = 4

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ALL = sorted({*map(least_chain, registry.parts()), *(tuple(chain.split("+")) for chain in CHAINS)})
CASES = [
    pytest.param(family, parts, id=f"{family}-{'+'.join(parts)}")
    for parts in ALL
    for family in FAMILIES
    if not any(family in NOT_FOR.get(part, ()) for part in parts)
]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
every_case = pytest.mark.parametrize(("family", "parts"), CASES)
every_chain = pytest.mark.parametrize("parts", ALL, ids="+".join)


def model_of(family: str) -> nn.Module:
    return make(family).float().eval()


def rows_of(family: str, seed: int = 0) -> dict[str, Tensor]:
    """Four examples; the first two tokens of a text are a prompt, since SparseLoRA works on those."""
    whole = batch(family, 4, seed)
    if whole["labels"].ndim == 2:
        whole["labels"] = whole["labels"].clone()
        whole["labels"][:, :2] = -100
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in whole.items()}


def attached(family: str, parts: tuple[str, ...], seed: int = 0) -> Chain:
    entries: list[dict[str, Any]] = [small(part) for part in parts]
    for entry in entries:
        if "layers" in registry.part(entry["part"]).Options.model_fields and family in LAYERS:
            entry["layers"] = LAYERS[family]
    return Chain.build([registry.parse_options(entry) for entry in entries]).attach(model_of(family), seed)


def model(chain: Chain) -> nn.Module:
    assert chain.model is not None
    return chain.model


def optimizer_of(chain: Chain) -> torch.optim.Optimizer:
    return chain.optimizer(TrainSpec(lr=1e-2, steps=STEPS))


def trained(family: str, parts: tuple[str, ...], steps: int = STEPS) -> Chain:
    chain = attached(family, parts)
    train(model(chain), chain, optimizer_of(chain), [rows_of(family, seed) for seed in range(steps)])
    return chain


def same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def test_small_options_are_options_of_something() -> None:
    known = {option for part in registry.parts().values() for option in part.Options.model_fields}
    assert set(SMALL) <= known


@pytest.mark.parametrize(
    ("family", "part"), [(f, part) for part, families in NOT_FOR.items() for f in sorted(families)]
)
def test_families_that_a_part_refuses(family: str, part: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{part}: \w+ "):
        attached(family, least_chain(part))


@every_case
def test_attaching_changes_nothing(family: str, parts: tuple[str, ...]) -> None:
    """Not what evaluation sees, and no bit of a weight; what stores weights otherwise tells how far they moved."""
    rows, base = rows_of(family), model_of(family)
    with torch.no_grad():
        expected = base(**rows).logits
    chain = attached(family, parts)
    held = {name.replace(".base.", "."): tensor for name, tensor in model(chain).state_dict().items()}
    for name, tensor in base.state_dict().items():
        assert name not in held or torch.equal(held[name], tensor), name
    drifts = [part.drift for part in chain.parts if hasattr(part, "drift")]
    missing = base.state_dict().keys() - held.keys()
    assert missing == {f"{name}.weight" for drift in drifts for name in drift}
    assert all(0 < drift.relative < 1 for told in drifts for drift in told.values())
    if not drifts:
        MERGE.check(logits(chain, rows), expected)


@every_case
def test_only_what_is_declared_changes(family: str, parts: tuple[str, ...]) -> None:
    chain = attached(family, parts)
    before, flags = snapshot(model(chain)), {name for name, p in model(chain).named_parameters() if p.requires_grad}
    assert flags == set(chain.trainable())
    rows = rows_of(family)
    model(chain).train()
    chain.before_step([rows], 0)
    chain.before_forward(rows, 0)
    model(chain)(**rows).loss.backward()
    without = [name for name, parameter in chain.trainable().items() if parameter.grad is None]
    assert not without, f"these are said to train and get no gradient: {without}"
    model(chain).zero_grad(set_to_none=True)
    train(model(chain), chain, optimizer_of(chain), [rows_of(family, seed) for seed in range(STEPS)])
    declared = {tensor.data_ptr() for tensor in chain.changed().values()}
    moved = 0
    for name, tensor in model(chain).state_dict().items():
        if torch.equal(tensor, before[name]):
            continue
        moved += 1
        assert tensor.data_ptr() in declared, f"{name} changed, and chain.changed() does not name it"
    assert moved, "nothing was trained"


@every_case
def test_merging(family: str, parts: tuple[str, ...]) -> None:
    """It keeps what evaluation sees, leaves plain layers, and is taken out again where the parts can."""
    rows, chain = rows_of(family), trained(family, parts)
    seen = logits(chain, rows)
    plain = chain.merge().eval()
    with torch.no_grad():
        PEER_GRADIENT.check(plain(**rows).logits, seen)
    kinds = {name: type(module) for name, module in plain.named_modules()}
    assert kinds == {name: type(module) for name, module in model_of(family).named_modules()}
    if all(hasattr(part, "unmerge") for part in chain.parts if hasattr(part, "merge")):
        chain.unmerge()
        PEER_GRADIENT.check(logits(chain, rows), seen)
        chain.merge()
    else:
        with pytest.raises(ConfigError, match="cannot be unmerged"):
            chain.unmerge()


@every_case
def test_saved_weights_give_the_same_function(family: str, parts: tuple[str, ...]) -> None:
    rows, chain = rows_of(family), trained(family, parts)
    again = attached(family, parts)
    again.load_changed({name: tensor.clone() for name, tensor in chain.changed().items()})
    BIT_EXACT.check(logits(again, rows), logits(chain, rows))


@every_case
def test_resuming_and_repeating_give_the_same_bits(family: str, parts: tuple[str, ...]) -> None:
    batches = [rows_of(family, seed) for seed in range(STEPS)]
    chain = attached(family, parts)
    optimizer = optimizer_of(chain)
    train(model(chain), chain, optimizer, batches[:2])
    weights, state = copy.deepcopy(chain.changed()), copy.deepcopy(chain.state_dict())
    moments = copy.deepcopy(optimizer.state_dict())

    resumed = attached(family, parts)
    optimizer = optimizer_of(resumed)
    resumed.load_changed(weights)
    resumed.load_state_dict(state)
    optimizer.load_state_dict(moments)
    train(model(resumed), resumed, optimizer, batches[2:], first=2)
    same_bits(model(resumed).state_dict(), model(trained(family, parts)).state_dict())


@every_case
def test_micro_batches_give_the_gradient_of_the_whole_batch(family: str, parts: tuple[str, ...]) -> None:
    rows, found = rows_of(family, 9), []
    for size in (4, 2):
        chain = trained(family, parts, 2)
        cuts = [{key: tensor[i : i + size] for key, tensor in rows.items()} for i in range(0, 4, size)]
        chain.before_step(cuts, 2)
        for cut in cuts:
            chain.before_forward(cut, 2)
            (model(chain)(**cut).loss * (size / 4)).backward()
        found.append({name: p.grad for name, p in chain.trainable().items() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        PEER_GRADIENT.check(found[1][name], gradient)


@every_chain
def test_a_second_chain_waits_for_the_merge(parts: tuple[str, ...]) -> None:
    chain = attached("bert", parts)
    with pytest.raises(ConfigError, match="attached already; merge it first"):
        Chain.build([registry.parse_options("full")]).attach(model(chain))
    chain.merge()
    with pytest.raises(ConfigError, match="merged already"):
        chain.merge()
    Chain.build([registry.parse_options("full")]).attach(model(chain))
    with pytest.raises(ConfigError, match=r"another chain was attached|cannot be unmerged"):
        chain.unmerge()


@every_chain
def test_a_copy_of_the_model_is_a_model_of_its_own(parts: tuple[str, ...]) -> None:
    rows, chain = rows_of("bert"), trained("bert", parts)
    seen, before = logits(chain, rows), snapshot(model(chain))
    twin = copy.deepcopy(chain)
    assert twin.model is not chain.model
    train(model(twin), twin, optimizer_of(twin), [rows])
    same_bits(snapshot(model(chain)), before)
    BIT_EXACT.check(logits(chain, rows), seen)
    assert not torch.equal(logits(twin, rows), seen)
