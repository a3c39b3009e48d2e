"""Which parts go together: every pair trains or is refused in words, and docs/methods.md says so."""

from __future__ import annotations

import itertools

import pytest

from lowrank import registry
from lowrank.catalogue import PAGE, entries, page, table, text
from lowrank.compositions import CHAINS, attempt, least_chain, pairs
from lowrank.errors import ConfigError
from lowrank.methods.adapted import AdaptedLinear, adapted
from lowrank.methods.part import HOOKS
from lowrank.targets import linear_names, select
from tests.chain_runs import attach
from tests.tiny_models import make
from tests.tolerances import MERGE

# contextual_sparsity warns where every token is an output; alpha_merge where its adapter dies.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PARTS = list(registry.parts())


@pytest.mark.parametrize("front", [(), ("lora",)], ids=["alone", "behind lora"])
def test_every_pair_trains_or_is_refused_by_name(front: tuple[str, ...]) -> None:
    """Anything else, an AttributeError of a hook or a tensor of the wrong shape, is raised and fails."""
    found = pairs(front)
    rest = [part for part in PARTS if part not in front]
    assert set(found) == set(itertools.permutations(rest, 2))
    for pair, outcome in found.items():
        if outcome.refusal is not None:
            who, colon, why = outcome.refusal.partition(": ")
            assert colon, (pair, outcome.refusal)
            assert who in (*front, *pair) or who.startswith("chain "), (pair, outcome.refusal)
            assert len(why) > 20, (pair, outcome.refusal)


@pytest.mark.parametrize("chain", [*itertools.permutations(PARTS, 2), *(tuple(c.split("+")) for c in CHAINS)])
def test_merging_keeps_what_was_trained(chain: tuple[str, ...]) -> None:
    trial = attempt(chain)
    assert trial.refusal is None or chain not in {tuple(c.split("+")) for c in CHAINS}
    assert trial.merge_error <= MERGE.absolute


@pytest.mark.parametrize("name", PARTS)
def test_every_part_trains_in_some_chain(name: str) -> None:
    assert name in least_chain(name)


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        ("lora+galore+relora", "changes AdamW's moments when it merges, and galore brings"),
        ("lora+paged_adamw+alpha_merge", "changes AdamW's moments when it merges, and paged_adamw brings"),
        ("lora+prune+mhlora", "prune: mhlora stands behind it"),
        ("galore+paged_adamw", "both bring the optimizer; one may"),
        ("lora+lora", "stands in it twice"),
    ],
)
def test_refusals(chain: str, words: str) -> None:
    assert words in (attempt(chain.split("+")).refusal or "")


def test_the_page_is_what_the_parts_say() -> None:
    assert PAGE.read_text() == page(), "run `python -m lowrank.catalogue`, which writes docs/methods.md anew"


def test_the_catalogue_leaves_nothing_out() -> None:
    written = page()
    assert [entry.name for entry in entries()] == PARTS
    for entry in entries():
        part = registry.part(entry.name)
        assert {option.name for option in entry.options} == set(part.Options.model_fields)
        assert set(entry.hooks) == {hook for hook in HOOKS if hasattr(part, hook)}
        assert entry.summary.endswith(".")
        assert entry.source or entry.name in {"full", "linear_probe"}, f"{entry.name} names no source"
        for option in entry.options:
            assert f"| `{option.name}` | {option.default} |" in written
            assert f"{entry.name}: " in text()
        assert entry.summary in table()


class TestBehindAnotherPart:
    """A layer that a part has wrapped is a target of the parts behind it."""

    @pytest.mark.parametrize("targets", ["all-linear", ["q_lin"], ["*q_lin"], ["distilbert.*"]])
    def test_wrapped_layers_are_found_once_under_their_own_name(self, targets: str | list[str]) -> None:
        plain, wrapped = make("distilbert"), make("distilbert")
        attach(wrapped, {"part": "lora", "head": "adapted"})
        assert select(wrapped, targets) == select(plain, targets)
        for head in (False, True):
            assert linear_names(wrapped, head=head) == linear_names(plain, head=head)

    def test_a_users_module_called_base_is_a_target(self) -> None:
        from torch import nn

        model = nn.ModuleDict({"base": nn.Linear(4, 4), "top": nn.Linear(4, 4)})
        assert select(model, ["base", "top"]) == ["base", "top"]

    def test_a_second_adapter_finds_its_layers(self) -> None:
        model = make("bert")
        attach(model, {"part": "lora", "rank": 2, "targets": ["query"]}, {"part": "mhlora", "rank": 2})
        kinds = {name: set(layer.adapters) for name, layer in adapted(model)}
        assert set(kinds) == set(linear_names(make("bert"), head=False))
        assert all(("lora" in found) == name.endswith("query") for name, found in kinds.items())
        assert all("mhlora" in found for found in kinds.values())
        assert not any(isinstance(layer.base, AdaptedLinear) for _, layer in adapted(model))

    def test_velora_keeps_the_input_of_multi_head_lora(self) -> None:
        model = make("llama")
        attach(model, {"part": "mhlora", "rank": 2}, {"part": "velora", "num_groups": 4})
        assert sum(layer.keep is not None for _, layer in adapted(model)) == 4


class TestRefusalLeavesTheModelAsItWas:
    @pytest.mark.parametrize(
        ("family", "parts"),
        [
            ("bert", [{"part": "hira", "rank": 2}, {"part": "contextual_sparsity", "dense_steps": 0}]),
            ("llama", [{"part": "lora", "rank": 2, "targets": ["q_proj"]}, {"part": "velora", "num_groups": 4}]),
            ("nanogpt", [{"part": "lte", "rank": 2, "targets": ["lm_head"]}, {"part": "velora", "layers": ["c_fc"]}]),
        ],
    )
    def test_when_a_later_part_refuses(self, family: str, parts: list[object]) -> None:
        model = make(family)
        model.requires_grad_(False)
        next(model.parameters()).requires_grad_(True)
        modules, tied = list(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
        trains = {name: parameter.requires_grad for name, parameter in tied.items()}
        with pytest.raises(ConfigError):
            attach(model, *parts)  # type: ignore[arg-type]
        assert list(model.named_modules()) == modules
        after = dict(model.named_parameters(remove_duplicate=False))
        assert after.keys() == tied.keys()
        assert all(after[name] is parameter for name, parameter in tied.items())
        assert {name: parameter.requires_grad for name, parameter in after.items()} == trains
        attach(model, "full")
