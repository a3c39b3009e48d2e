"""A run's name is its question: the same question in any spelling is the same run."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank.errors import ConfigError
from lowrank.spec import SPEC_VERSION, DataSpec, EvalSpec, ModelSpec, RunSpec, TrainSpec, eval_id, run_id, spell
from lowrank.strict import parse

BASE = {
    "task": "classification",
    "model": {"card": "minilm"},
    "data": {"card": "topics"},
    "chain": [{"part": "lora", "rank": 8, "alpha": 32}],
    "train": {"lr": 1e-4, "epochs": 2},
    "seed": 0,
}
PINS = {"model": "minilm@1", "data": "topics@2"}


def spec(**changes):
    return parse(RunSpec, {**BASE, **changes}, "study.yaml")


def refused(**changes) -> str:
    with pytest.raises(ConfigError) as caught:
        spec(**changes)
    return str(caught.value)


def train(**changes):
    return {"train": {**BASE["train"], **changes}}


class TestRunId:
    def test_is_legible(self):
        assert run_id(spec(), PINS).startswith("lora-r8-a32-lr1e-4-s0-")

    def test_ignores_the_order_of_keys(self):
        turned = {key: BASE[key] for key in reversed(BASE)}
        turned["chain"] = [{"alpha": 32, "rank": 8, "part": "lora"}]
        assert run_id(parse(RunSpec, turned, "x"), dict(reversed(PINS.items()))) == run_id(spec(), PINS)

    @pytest.mark.parametrize("lr", ["1e-4", "0.0001", 0.0001, "1.0E-4", ".0001"])
    def test_ignores_how_a_float_is_spelled(self, lr):
        assert run_id(spec(**train(lr=lr)), PINS) == run_id(spec(), PINS)

    @pytest.mark.parametrize("alpha", [32, 32.0, "32", "3.2e1"])
    def test_casts_to_the_declared_type(self, alpha):
        chain = [{"part": "lora", "rank": "8", "alpha": alpha}]
        assert run_id(spec(chain=chain), PINS) == run_id(spec(), PINS)

    def test_leaves_defaults_out(self):
        chain = [{"part": "lora", "rank": 8, "alpha": 32, "dropout": 0.0, "targets": "all-linear"}]
        full = spec(chain=chain, **train(betas=[0.9, 0.999], weight_decay=0, batch_size=32))
        assert run_id(full, PINS) == run_id(spec(), PINS)

    @pytest.mark.parametrize(
        "changes",
        [
            {"seed": 1},
            train(lr=2e-4),
            train(batch_size=16),
            {"chain": [{"part": "lora", "rank": 8, "alpha": 16}]},
            {"chain": [{"part": "lora", "rank": 8, "alpha": 32, "targets": ["query"]}]},
            {"model": {"card": "minilm", "layers": 2}},
        ],
    )
    def test_another_question_is_another_run(self, changes):
        assert run_id(spec(**changes), PINS) != run_id(spec(), PINS)

    def test_moved_data_is_another_run(self):
        assert run_id(spec(), {**PINS, "data": "topics@3"}) != run_id(spec(), PINS)

    @given(st.floats(min_value=1e-8, max_value=1e5, allow_nan=False), st.integers(0, 10**6))
    def test_survives_json_and_stays_a_name(self, lr, seed):
        made = spec(seed=seed, **train(lr=lr))
        again = parse(RunSpec, json.loads(json.dumps(made.dump())), "spec.json")
        assert again == made
        assert run_id(again, PINS) == run_id(made, PINS)
        assert "/" not in run_id(made, PINS)

    def test_golden_defaults(self):
        """A default that changes changes the meaning of old ids: raise SPEC_VERSION with it."""
        defaults = {
            record.__name__: {
                name: field.default for name, field in record.model_fields.items() if not field.is_required()
            }
            for record in (ModelSpec, DataSpec, TrainSpec, EvalSpec)
        }
        assert SPEC_VERSION == 1
        assert defaults == {
            "ModelSpec": {
                "layers": None,
                "head_classes": None,
                "dropout": None,
                "dtype": "float32",
                "gradient_checkpointing": False,
            },
            "DataSpec": {
                "max_length": 128,
                "pad": "longest",
                "concatenate": True,
                "sample": "rows",
                "image_size": None,
                "split_seed": 0,
                "validation_fraction": 0.1,
                "test_fraction": 0.2,
                "train_rows": None,
                "validation_rows": None,
                "test_rows": None,
                "mask_fraction": 0.15,
                "train_on_inputs": True,
                "group_by_length": False,
            },
            "TrainSpec": {
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "weight_decay": 0.0,
                "schedule": "constant",
                "warmup_steps": 0,
                "min_lr_fraction": 0.0,
                "cycle_steps": None,
                "epochs": None,
                "steps": None,
                "batch_size": 32,
                "micro_batch_size": None,
                "clip_norm": None,
                "precision": "fp32",
                "eval_every": "epoch",
                "select": "last",
                "observe": {},
            },
            "EvalSpec": {
                "protocol": "score",
                "options": {},
                "split": "test",
                "batch_size": 64,
                "rows": None,
                "merged": False,
                "data": None,
            },
        }

    def test_golden_id(self):
        assert run_id(spec(), PINS) == "lora-r8-a32-lr1e-4-s0-3d849baa"

    def test_the_evaluation_is_not_part_of_it(self):
        assert eval_id(EvalSpec(), {}) != eval_id(EvalSpec(merged=True), {})


@pytest.mark.parametrize(
    ("value", "text"),
    [(16.0, "16"), (3e-4, "3e-4"), (0.00015, "1.5e-4"), (0.25, "0.25"), (2e6, "2e6"), (1500.0, "1500"), (8, "8")],
)
def test_numbers_are_spelled_as_people_write_them(value, text):
    assert spell(value) == text


class TestRefusals:
    """Each fault names its place, the value and what is allowed."""

    def test_unknown_key_at_the_top(self):
        allowed = "allowed: chain, data, model, seed, task, train"
        assert refused(sed=1) == f"study.yaml: sed: unknown key 'sed'; did you mean 'seed'? ({allowed})"

    def test_unknown_key_below(self):
        message = refused(data={"card": "topics", "max_lenght": 3})
        assert message.startswith("study.yaml: data.max_lenght: unknown key 'max_lenght'; did you mean 'max_length'?")

    def test_unknown_option_of_a_part(self):
        message = refused(chain=[{"part": "lora", "rnk": 8}])
        assert message.startswith(
            "study.yaml: chain: 0 (lora): rnk: unknown key 'rnk'; did you mean 'rank'? (allowed: alpha"
        )

    def test_unknown_part(self):
        assert refused(chain="lorra").startswith(
            "study.yaml: chain: unknown part 'lorra'; did you mean 'lora'? (allowed:"
        )

    def test_missing_key(self):
        assert refused(model={}) == "study.yaml: model.card: missing, and it has no default"

    @pytest.mark.parametrize("value", ["nan", float("nan")])
    def test_nan(self, value):
        assert refused(**train(lr=value)) == "study.yaml: train.lr: nan is not a finite number"

    def test_infinity(self):
        assert refused(**train(lr="inf")) == "study.yaml: train.lr: inf is not a finite number"

    def test_negative(self):
        assert refused(**train(lr=-1e-4)) == "study.yaml: train.lr: -0.0001 is out of range, allowed: > 0"

    def test_alpha_zero(self):
        message = refused(chain=[{"part": "lora", "alpha": 0}])
        assert message == "study.yaml: chain: 0 (lora): alpha: 0.0 is out of range, allowed: > 0"

    def test_dropout_of_one(self):
        message = refused(chain=[{"part": "lora", "dropout": 1}])
        assert message == "study.yaml: chain: 0 (lora): dropout: 1.0 is out of range, allowed: 0 <= value < 1"

    def test_a_word_for_a_number(self):
        assert refused(**train(lr="fast")) == "study.yaml: train.lr: 'fast' is not a number"

    def test_a_fraction_for_a_whole_number(self):
        assert refused(seed=1.5) == "study.yaml: seed: 1.5 is not a whole number"

    def test_true_is_no_number(self):
        assert refused(seed=True) == "study.yaml: seed: True is not a whole number"

    @pytest.mark.parametrize("name", ["../results", "a/b", "..", ".hidden", "a;b", "a b", ""])
    def test_a_name_that_would_leave_its_folder(self, name):
        allowed = "allowed: letters, digits, '.', '_' and '-', no leading '.'"
        assert refused(model={"card": name}) == f"study.yaml: model.card: {name!r} is not a name; {allowed}"

    def test_two_lengths(self):
        message = refused(train={"lr": 1, "epochs": 1, "steps": 1})
        assert message == "study.yaml: train: give exactly one of epochs and steps, found epochs=1 and steps=1"

    def test_an_empty_chain(self):
        message = refused(chain=[])
        assert message == "study.yaml: chain: a chain is a list of parts, as in [{part: lora, rank: 8}]; found []"

    def test_all_faults_at_once(self):
        message = refused(seed=-1, **train(lr=0, batch_size="x"))
        assert message.splitlines() == [
            "study.yaml: train.lr: 0.0 is out of range, allowed: > 0",
            "study.yaml: train.batch_size: 'x' is not a number",
            "study.yaml: seed: -1 is out of range, allowed: >= 0",
        ]
