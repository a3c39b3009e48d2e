"""VeLoRA in chains: where its vectors come from, which layers it finds, resuming, cutting batches, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.errors import ConfigError
from lowrank.methods.adapted import adapted
from lowrank.methods.velora import Velora
from lowrank.spec import RunSpec, run_id
from tests.chain_runs import attach, check_accumulation, check_resume, logits, train
from tests.tiny_models import batch, make
from tests.tolerances import BIT_EXACT, FLOAT32_VECTOR, FLOAT64_IDENTITY

VELORA: dict[str, Any] = {"part": "velora", "num_groups": 4}
INITS = ["batch_average_once", "batch_average", "svd", "random"]


def kept(model: nn.Module) -> dict[str, Any]:
    return {name: layer.keep for name, layer in adapted(model) if layer.keep is not None}


def inputs_of(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What reaches each layer that keeps sub-tokens."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        return lambda module, args: seen.__setitem__(name, args[0].detach())

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in kept(model)]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("init", INITS)
def test_where_the_vectors_come_from(init: str) -> None:
    model = make("llama")
    chain = attach(model, "full", {**VELORA, "init": init})
    first, second = batch("llama", 4, 0), batch("llama", 4, 1)
    random = {name: keep.vector for name, keep in kept(model).items()}
    expected = {}
    for step, whole in enumerate((first, second)):
        tokens = {name: x.reshape(-1, kept(model)[name].size) for name, x in inputs_of(model, whole).items()}
        if init == "random":
            expected = random
        elif init == "svd" and step == 0:
            expected = {name: torch.linalg.svd(t, full_matrices=False).Vh[0] for name, t in tokens.items()}
        elif init == "batch_average" or (init == "batch_average_once" and step == 0):
            expected = {name: functional.normalize(t.mean(0), dim=0) for name, t in tokens.items()}
        chain.before_step([whole], step)
        for name, keep in kept(model).items():
            vector = keep.vector.double()
            assert abs(vector.norm().item() - 1) < 1e-6
            FLOAT32_VECTOR.check(vector * torch.sign(vector @ expected[name].double()), expected[name].double())
            assert init != "svd" or vector.sum() >= 0


@pytest.mark.parametrize("init", ["batch_average_once", "svd"])
def test_the_cut_of_the_first_batch_does_not_matter(init: str) -> None:
    vectors = []
    for size in (8, 2):
        model = make("llama").float()
        chain = attach(model, "full", {**VELORA, "init": init})
        whole = batch("llama", 8)
        chain.before_step([{k: v[i : i + size] for k, v in whole.items()} for i in range(0, 8, size)], 0)
        vectors.append(torch.cat([keep.vector for keep in kept(model).values()]))
    FLOAT32_VECTOR.check(vectors[0], vectors[1])


def test_taking_the_vectors_leaves_the_random_state_and_sees_the_masks_of_the_pass_that_follows() -> None:
    model = make("distilbert")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    chain = attach(model.train(), "full", {**VELORA, "layers": "d"})
    whole = batch("distilbert", 4)
    state = torch.get_rng_state()
    chain.before_step([whole], 0)
    assert torch.equal(torch.get_rng_state(), state)
    for name, x in inputs_of(model, whole).items():
        mean = functional.normalize(x.reshape(-1, kept(model)[name].size).mean(0), dim=0)
        FLOAT32_VECTOR.check(kept(model)[name].vector.double(), mean)


@pytest.mark.parametrize(
    ("family", "layers", "found"),
    [
        ("llama", "qkvogud", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("distilbert", "q k v o up down", ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]),
        ("vit", ["v", "down"], ["v_proj", "fc2"]),
        ("bert", "od", ["attention.output.dense", "output.dense"]),
        ("gpt2", "oud", ["attn.c_proj", "c_fc", "mlp.c_proj"]),
        ("gpt2", "c_attn", ["c_attn"]),
        ("nanogpt", ["c_fc", "c_out"], ["c_fc", "c_out"]),
    ],
)
def test_layers_of_each_family(family: str, layers: Any, found: list[str]) -> None:
    model = make(family)
    attach(model, "full", {**VELORA, "layers": layers})
    assert len(kept(model)) == 2 * len(found)
    assert all(any(name.endswith(f".{leaf}") for leaf in found) for name in kept(model))


def test_one_number_of_groups_for_each_kind() -> None:
    model = make("llama")
    attach(model, "full", {"part": "velora", "layers": "vd", "num_groups": "4,6"})
    assert {(name.rsplit(".", 1)[-1], keep.groups) for name, keep in kept(model).items()} == {
        ("v_proj", 4),
        ("down_proj", 6),
    }


CHAINS: list[list[Any]] = [
    ["full", VELORA],
    [{"part": "lora", "rank": 2}, VELORA],
    [{"part": "hira", "rank": 2}, VELORA],
    ["full", {"part": "galore", "rank": 2}, VELORA],
    ["full", {**VELORA, "precision": "float16"}],
]
NAMES = ["full", "lora", "hira", "full.galore", "full, float16"]


@pytest.mark.parametrize("parts", CHAINS, ids=NAMES)
def test_output_is_untouched_and_merging_and_unmerging_give_the_bits_back(parts: list[Any]) -> None:
    inputs = batch("llama", 4)
    plain, model = make("llama"), make("llama")
    before = attach(plain, *parts[:-1])
    chain = attach(model, *parts)
    BIT_EXACT.check(logits(chain, inputs), logits(before, inputs))
    counted = sum(p.numel() for p in chain.trainable().values())
    assert counted == sum(p.numel() for p in before.trainable().values())
    chain.merge()
    assert not list(adapted(model))
    FLOAT64_IDENTITY.check(model(**inputs).logits, logits(before, inputs))
    chain.unmerge()
    assert len(kept(model)) == 4
    FLOAT64_IDENTITY.check(logits(chain, inputs), logits(before, inputs))


@pytest.mark.parametrize("parts", [CHAINS[0], CHAINS[1], CHAINS[2], CHAINS[4]], ids=["full", "lora", "hira", "float16"])
@pytest.mark.parametrize("init", INITS)
def test_resume_is_bit_exact(parts: list[Any], init: str) -> None:
    check_resume("llama", [*parts[:-1], {**parts[-1], "init": init}])


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama", "nanogpt", "vit"])
@pytest.mark.parametrize("first", ["full", {"part": "lora", "rank": 2}, {"part": "hira", "rank": 2}], ids=NAMES[:3])
def test_micro_batches_give_the_gradient_of_the_whole_batch(family: str, first: Any) -> None:
    layers = {"gpt2": "c_attn c_proj", "nanogpt": "c_attn c_out"}.get(family, "vd")
    check_accumulation(family, [first, {**VELORA, "layers": layers}], 2, FLOAT64_IDENTITY)


def test_scale_is_inert_under_adam() -> None:
    ends = []
    for scale in (1.0, 4.0):  # a power of two, so that no bit is lost on the way
        model = make("llama")
        chain = attach(model, "full", {**VELORA, "scale": scale})
        groups = [p for name, p in chain.trainable().items() if ".base." in name]
        train(model, chain, torch.optim.AdamW(groups, lr=1e-2, eps=1e-30), [batch("llama", 4, i) for i in range(4)])
        ends.append(logits(chain, batch("llama", 4)))
    FLOAT64_IDENTITY.check(ends[0], ends[1])


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            ["full", {**VELORA, "num_groups": 7}],
            r"7 does not divide the 16 inputs of 'model.layers.0.*v_proj'",
        ),
        ([VELORA], "frozen weight and no adapter"),
        ([{"part": "lora", "targets": ["q_proj"]}, VELORA], "'model.layers.0.self_attn.v_proj' has a frozen weight"),
        (["full", {**VELORA, "layers": ["vproj"]}], "did you mean 'v_proj'"),
        (["full", {**VELORA, "layers": ["v", "v_proj"], "num_groups": [4, 8]}], "named twice, with 4 and 8"),
    ],
)
def test_refuses(parts: list[Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        attach(make("llama"), *parts)


def test_refuses_a_kind_that_the_model_has_not() -> None:
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel has no separate 'v' layer; allowed: .*c_attn"):
        attach(make("gpt2"), "full", VELORA)


def test_refuses_to_train_before_the_first_batch() -> None:
    model = make("llama")
    attach(model, "full", VELORA)
    with pytest.raises(ConfigError, match="no vectors yet"):
        model(**batch("llama", 2))


@pytest.mark.parametrize(
    "options",
    [{"num_groups": 0}, {"num_groups": "64,86,3"}, {"scale": 0}, {"init": "ema"}, {"layers": "vv"}, {"layers": []}],
)
def test_refuses_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="velora"):
        Velora(**options)


def test_spellings_of_one_question_are_one_run() -> None:
    def name(**options: Any) -> str:
        chain = ["full", {"part": "velora", **options}]
        rest = {"task": "causal_lm", "model": {"card": "m"}, "data": {"card": "d"}, "train": {"lr": 1, "steps": 1}}
        return run_id(RunSpec.model_validate({**rest, "chain": chain}), {})

    assert name(layers="vd", num_groups="64,86") == name(layers=["v", "down"], num_groups=[64, 86])
    assert name(num_groups="64,86").startswith("full.velora-g64_86-")
    assert name(num_groups=32) == name()
