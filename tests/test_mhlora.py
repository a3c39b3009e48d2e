"""Multi-head LoRA: the sum of its heads, one wide LoRA, and a peer."""

from __future__ import annotations

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowrank.errors import ConfigError
from lowrank.methods.adapted import AdaptedLinear, dense_weight
from lowrank.methods.mhlora import MultiHeadLora
from tests.chain_runs import attach, check_accumulation, check_resume, logits, snapshot, train
from tests.tiny_models import FAMILIES, batch, make
from tests.tolerances import BIT_EXACT, FLOAT32_ORTHOGONAL, FLOAT64_IDENTITY, PEER_FORWARD, PEER_GRADIENT


def layer_with(options: dict[str, object], inside: int, outside: int, kind: str, bias: bool) -> AdaptedLinear:
    base: nn.Module = nn.Linear(inside, outside, bias=bias) if kind == "linear" else Conv1D(outside, inside)
    layer = AdaptedLinear(base)
    generator = torch.Generator().manual_seed(0)
    layer.adapters["mhlora"] = MultiHeadLora(**options).new_adapter(inside, outside, generator)
    layer.double()
    nn.init.normal_(layer.adapters["mhlora"].lora_B)
    return layer


@given(
    heads=st.integers(1, 4),
    rank=st.integers(1, 3),
    inside=st.integers(3, 7),
    outside=st.integers(3, 7),
    shape=st.sampled_from([(4,), (2, 3), (2, 1, 3)]),
    kind=st.sampled_from(["linear", "conv1d"]),
    bias=st.booleans(),
    combine=st.sampled_from(["mean", "sum"]),
)
def test_is_the_sum_of_its_heads(
    heads: int, rank: int, inside: int, outside: int, shape: tuple[int, ...], kind: str, bias: bool, combine: str
) -> None:
    layer = layer_with(
        {"num_lora_heads": heads, "rank": rank, "alpha": 3.0, "combine": combine}, inside, outside, kind, bias
    )
    adapter = layer.adapters["mhlora"]
    x = torch.randn(*shape, inside, dtype=torch.float64, requires_grad=True)

    def published(x: Tensor) -> Tensor:
        y = layer.base(x)
        for A, B in zip(adapter.lora_A, adapter.lora_B, strict=True):
            y = y + (3.0 / rank) / (heads if combine == "mean" else 1) * (x @ A.t() @ B.t())
        return y

    tensors = [x, adapter.lora_A, adapter.lora_B]
    weights = torch.randn(*shape, outside, dtype=torch.float64)
    ours, theirs = layer(x), published(x)
    FLOAT64_IDENTITY.check(ours, theirs)
    found = torch.autograd.grad((ours * weights).sum(), tensors)
    for got, expected in zip(found, torch.autograd.grad((theirs * weights).sum(), tensors), strict=True):
        FLOAT64_IDENTITY.check(got, expected)
    merged = x @ (dense_weight(layer.base) + layer.delta_weight()).t()
    FLOAT64_IDENTITY.check(merged if layer.bias is None else merged + layer.bias, ours)


def test_first_factors_have_orthogonal_rows_of_length_sqrt_in_over_rank() -> None:
    layer = layer_with({"num_lora_heads": 3, "rank": 4}, 16, 8, "linear", True)
    for A in layer.adapters["mhlora"].lora_A:
        FLOAT32_ORTHOGONAL.check(A @ A.t(), torch.eye(4, dtype=torch.float64) * 16 / 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_attaching_changes_nothing_and_merging_keeps_the_function(family: str) -> None:
    model, inputs = make(family), batch(family, 3)
    model.eval()
    bare = model(**inputs).logits
    chain = attach(model, {"part": "mhlora", "rank": 2})
    BIT_EXACT.check(logits(chain, inputs), bare)
    train(model, chain, torch.optim.SGD(chain.trainable().values(), lr=1.0), [batch(family, 4)])
    trained = logits(chain, inputs)
    assert not torch.allclose(trained, bare)
    chain.merge()
    FLOAT64_IDENTITY.check(logits(chain, inputs), trained)
    chain.unmerge()
    FLOAT64_IDENTITY.check(logits(chain, inputs), trained)


def test_sum_has_the_scale_of_n_means() -> None:
    mean, total = (layer_with({"num_lora_heads": 4, "combine": how}, 16, 16, "linear", True) for how in ("mean", "sum"))
    total.load_state_dict(mean.state_dict())
    BIT_EXACT.check(total.delta_weight(), 4 * mean.delta_weight())


def test_equals_a_peers_lora_of_rank_n_r() -> None:
    model = make("gpt2").float()
    config = peft.LoraConfig(r=6, lora_alpha=6.0, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.0)
    theirs = peft.get_peft_model(make("gpt2").float(), config)
    chain = attach(
        model, {"part": "mhlora", "num_lora_heads": 3, "rank": 2, "alpha": 6.0, "targets": "c_attn"}
    )  # scaling 6 / 2 / 3 = 1, as 6 / 6
    model.float()
    for name, parameter in chain.trainable().items():
        nn.init.normal_(parameter, std=0.1)
        peer_name = "base_model.model." + name.replace(".adapters.mhlora", "") + ".default.weight"
        stacked = parameter.flatten(0, 1) if name.endswith("A") else parameter.transpose(0, 1).flatten(1)
        theirs.get_parameter(peer_name).data.copy_(stacked)
    inputs = batch("gpt2", 4)
    ours, peer = model(**inputs), theirs(**inputs)
    PEER_FORWARD.check(ours.logits, peer.logits)
    ours.loss.backward()
    peer.loss.backward()
    for name, parameter in chain.trainable().items():
        peer_name = "base_model.model." + name.replace(".adapters.mhlora", "") + ".default.weight"
        stacked = parameter.grad.flatten(0, 1) if name.endswith("A") else parameter.grad.transpose(0, 1).flatten(1)
        PEER_GRADIENT.check(stacked, theirs.get_parameter(peer_name).grad)


def test_parameters_in_closed_form() -> None:
    chain = attach(make("nanogpt"), {"part": "mhlora", "num_lora_heads": 3, "rank": 2, "targets": "c_attn"})
    assert sum(p.numel() for p in chain.trainable().values()) == 2 * 3 * 2 * (16 + 48)


def test_resumes_bit_exact() -> None:
    check_resume("llama", [{"part": "mhlora", "rank": 2}])


def test_micro_batches_give_the_answer_of_one_batch() -> None:
    check_accumulation("llama", [{"part": "mhlora", "rank": 2}], 3, FLOAT64_IDENTITY)


def test_only_heads_train() -> None:
    model = make("bert")
    chain = attach(model, {"part": "mhlora", "rank": 2, "head": "frozen"})
    start = snapshot(model)
    train(model, chain, torch.optim.SGD(chain.trainable().values(), lr=1.0), [batch("bert", 4)])
    moved = {name for name, tensor in snapshot(model).items() if not torch.equal(tensor, start[name])}
    assert moved == {name for name in start if name.endswith("lora_B")}  # A's gradient is 0 while B is


def test_refuses_a_rank_that_a_layer_cannot_hold() -> None:
    with pytest.raises(ConfigError, match=r"mhlora: rank 17 is too large for '.*c_attn'; allowed: 1 to 16"):
        attach(make("gpt2"), {"part": "mhlora", "rank": 17, "targets": "c_attn"})
