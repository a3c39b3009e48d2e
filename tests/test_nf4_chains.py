"""NF4 in a chain: QLoRA is LoRA on the stored weights, is merged on purpose only, and saves no codes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from lowrank.errors import ConfigError
from lowrank.methods.adapted import adapted, dense_weight
from lowrank.methods.chain import Chain
from lowrank.methods.nf4_linear import Nf4Linear, stored_bytes
from lowrank.registry import parse_options
from lowrank.spec import TrainSpec
from tests import chain_runs, tiny_models
from tests.chain_runs import logits
from tests.tiny_models import FAMILIES
from tests.tolerances import BIT_EXACT, MERGE, PEER_FORWARD

LORA = {"part": "lora", "rank": 4}


def model_of(family: str) -> nn.Module:
    """bitsandbytes stores single and half precision only."""
    return tiny_models.make(family).float()


def batch_of(family: str, size: int = 4, seed: int = 0) -> dict[str, Tensor]:
    rows = tiny_models.batch(family, size, seed)
    return {key: value.float() if value.is_floating_point() else value for key, value in rows.items()}


def attach(base: nn.Module, *parts: str | dict[str, Any], seed: int = 0) -> Chain:
    """A chain of those parts on a copy of `base`."""
    return Chain.build([parse_options(part) for part in parts]).attach(copy.deepcopy(base), seed)


def perturb(chain: Chain) -> None:
    """Moves every trained parameter, so that no factor is zero and no identity holds by accident."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in chain.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def train(chain: Chain, optimizer: torch.optim.Optimizer, batches: list[dict[str, Tensor]]) -> None:
    chain_runs.train(chain.model, chain, optimizer, batches)


def layers(model: nn.Module) -> dict[str, Nf4Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Nf4Linear)}


def error_of(layer: Nf4Linear, weight: Tensor) -> Tensor:
    return layer.dense_weight().float() - weight.float()


def test_meta_device_leaves_later_layers_alone() -> None:
    """After a layer without values, real ones still work; a whole BERT can be sized."""
    with torch.device("meta"):
        model = attach(BertModel(BertConfig()), "nf4", LORA).model
    total = sum(stored_bytes(layer.in_features, layer.out_features) for layer in layers(model).values())
    assert len(layers(model)) == 73
    assert sum(buffer.nbytes for layer in layers(model).values() for buffer in layer.buffers()) == total
    assert Nf4Linear(nn.Linear(64, 8), True, None, False).dense_weight().isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
class TestFamilies:
    def test_equals_lora_on_the_dequantised_base(self, family: str) -> None:
        """Loss and all gradients of nf4+lora are those of lora on plain layers with the stored weights."""
        base, rows = model_of(family), batch_of(family)
        coded = attach(base, "nf4", LORA)
        plain = attach(base, LORA)
        perturb(coded)
        plain.load_changed(coded.changed())
        with torch.no_grad():
            for name, layer in layers(coded.model).items():
                dense_weight(plain.model.get_submodule(name)).copy_(layer.dense_weight())
        assert {n.removesuffix(".base") for n in layers(coded.model)} == set(coded["lora"].names(model_of(family)))
        losses = [chain.model(**rows).loss for chain in (coded, plain)]
        for loss in losses:
            loss.backward()
        PEER_FORWARD.check(losses[0], losses[1])
        for name, parameter in coded.trainable().items():
            PEER_FORWARD.check(parameter.grad, plain.trainable()[name].grad)

    def test_merge_goes_into_the_dequantised_weight(self, family: str) -> None:
        """The function is kept, plain layers come back, and the distance to a merge into the base is `drift`."""
        base, rows = model_of(family), batch_of(family)
        chain = attach(base, "nf4", LORA)
        perturb(chain)
        deltas = {name: layer.delta_weight().detach() for name, layer in adapted(chain.model)}
        before = logits(chain, rows)
        drift = chain["nf4"].drift
        merged = chain.merge().eval()
        MERGE.check(merged(**rows).logits, before)
        assert not layers(merged)
        assert [type(m) for m in merged.modules()] == [type(m) for m in base.modules()]
        assert deltas.keys() == drift.keys()
        for name, told in drift.items():
            original = dense_weight(base.get_submodule(name)).detach()
            off = dense_weight(merged.get_submodule(name)).detach() - (original + deltas[name])
            assert math.isclose(off.abs().max().item(), told.max_abs, rel_tol=1e-4)
            assert math.isclose((off.norm() / original.norm()).item(), told.relative, rel_tol=1e-4)
            assert 0.03 < told.relative < 0.2

    def test_save_and_load_onto_a_fresh_base(self, family: str) -> None:
        """No code is saved, since they follow from the base; the loaded model answers bit for bit."""
        base, rows = model_of(family), batch_of(family)
        chain = attach(base, "nf4", LORA)
        perturb(chain)
        saved = {name: tensor.clone() for name, tensor in chain.changed().items()}
        assert saved.keys() == chain.trainable().keys()
        again = attach(base, "nf4", LORA, seed=5)
        again.load_changed(saved)
        BIT_EXACT.check(again.model(**rows).logits, chain.model(**rows).logits)


@pytest.mark.parametrize(
    "parts", [[{"part": "hira", "rank": 4}], [{"part": "mhlora", "rank": 2}], [LORA, {"part": "prune", "start": 1}]]
)
def test_other_chains(parts: list[Any]) -> None:
    """Any adapter stands on a base in 4 bits: it is there, it trains, and merging keeps the function."""
    rows = batch_of("bert", 8)
    chain = attach(model_of("bert"), "nf4", *parts)
    before = logits(chain, rows)
    train(chain, torch.optim.AdamW(chain.trainable().values(), lr=1e-2), [rows, rows])
    after = logits(chain, rows)
    assert not torch.allclose(after, before)
    MERGE.check(chain.merge().eval()(**rows).logits, after)


def test_requantised_on_request() -> None:
    """With requantize the merged layers stay in 4 bits, and the drift of the sum is told."""
    base = model_of("bert")
    chain = attach(base, {"part": "nf4", "requantize": True}, LORA)
    perturb(chain)
    targets = {name: layer.weight + layer.delta_weight() for name, layer in adapted(chain.model)}
    merged = chain.merge()
    assert layers(merged).keys() == targets.keys()
    for name, layer in layers(merged).items():
        error = error_of(layer, targets[name].detach())
        told = chain["nf4"].drift[name]
        assert math.isclose(error.abs().max().item(), told.max_abs, rel_tol=1e-4)
        assert told.relative > 0.03
    with pytest.raises(ConfigError, match="nf4 cannot be unmerged"):
        chain.unmerge()


def test_accumulation() -> None:
    """Two micro-batches give the gradients of the whole batch."""
    rows = batch_of("bert", size=4)
    whole, cut = (attach(model_of("bert"), "nf4", LORA) for _ in range(2))
    perturb(whole)
    perturb(cut)
    whole.model(**rows).loss.backward()
    for part in (slice(0, 2), slice(2, 4)):
        (cut.model(**{key: value[part] for key, value in rows.items()}).loss / 2).backward()
    for name, parameter in whole.trainable().items():
        PEER_FORWARD.check(cut.trainable()[name].grad, parameter.grad)


@pytest.mark.parametrize(
    "parts", [("nf4", LORA), ("nf4", LORA, "paged_adamw"), ("nf4", LORA, {"part": "paged_adamw", "bits": 8})]
)
def test_resume_is_bit_exact(parts: tuple[Any, ...]) -> None:
    """2 + 2 steps through saved tensors are 4 steps."""
    base = model_of("llama")
    spec = TrainSpec(lr=1e-2, steps=4, weight_decay=0.1)
    batches = [batch_of("llama", seed=seed) for seed in range(4)]
    straight = attach(base, *parts)
    train(straight, straight.optimizer(spec), batches)

    first = attach(base, *parts)
    optimizer = first.optimizer(spec)
    train(first, optimizer, batches[:2])
    second = attach(base, *parts, seed=9)
    second.load_changed(first.changed())
    resumed = second.optimizer(spec)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, resumed, batches[2:])
    for name, tensor in straight.changed().items():
        BIT_EXACT.check(second.changed()[name], tensor)


class TestRefusals:
    def test_behind_an_adapter(self) -> None:
        with pytest.raises(ConfigError, match="nf4: stands behind 'lora'; allowed: first"):
            attach(model_of("bert"), LORA, "nf4")

    def test_full(self) -> None:
        with pytest.raises(ConfigError, match="nf4: a quantised base cannot train"):
            attach(model_of("bert"), "nf4", "full")

    def test_tied(self) -> None:
        with pytest.raises(ConfigError, match="the weight of 'lm_head' is tied to 'wte'"):
            attach(model_of("nanogpt"), {"part": "nf4", "targets": "lm_head"}, LORA)

    def test_layer_type(self) -> None:
        model = nn.Sequential(nn.modules.linear.NonDynamicallyQuantizableLinear(8, 8), nn.Linear(8, 8))
        with pytest.raises(ConfigError, match="'0' is a NonDynamicallyQuantizableLinear; allowed: Linear, Conv1D"):
            attach(model, {"part": "nf4", "targets": "0"}, {"part": "lora", "targets": "1"})

    def test_dtype(self) -> None:
        with pytest.raises(ConfigError, match=r"'0' holds torch.float64; allowed: float32, bfloat16, float16"):
            attach(nn.Sequential(nn.Linear(8, 8).double()), {"part": "nf4", "targets": "0"}, LORA)

    def test_twice(self) -> None:
        chain = attach(model_of("bert"), "nf4", LORA)
        with pytest.raises(ConfigError, match="attached already"):
            Chain.build([parse_options("nf4")]).attach(chain.model)

    def test_merge_twice(self) -> None:
        chain = attach(model_of("bert"), "nf4", LORA)
        chain.merge()
        with pytest.raises(ConfigError, match="merged already"):
            chain.merge()

    def test_merging_while_training(self) -> None:
        with pytest.raises(ConfigError, match="4 bits"):
            attach(model_of("bert"), "nf4", LORA, {"part": "relora"})

    def test_alone(self) -> None:
        with pytest.raises(ConfigError, match="nothing in BertForSequenceClassification is left to train"):
            attach(model_of("bert"), "nf4")


def test_shared_module_is_stored_once() -> None:
    """A layer that stands in two places is quantised once and stays shared, through merging too."""
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared), "head": nn.Linear(8, 2)})
    chain = attach(model, {"part": "nf4", "targets": "a.0"}, {"part": "lora", "rank": 2, "targets": "a.0"})
    assert chain.model["a"][0] is chain.model["b"][0]
    merged = chain.merge()
    assert merged["a"][0] is merged["b"][0]
    assert type(merged["a"][0]) is nn.Linear
