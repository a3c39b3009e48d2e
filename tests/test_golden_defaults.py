"""The default of every option of every part, written down once more, so that changing one is a decision."""

from __future__ import annotations

from typing import Any

import pytest

from lowrank import registry
from lowrank.spec import SPEC_VERSION

VERSION = 1
"""The SPEC_VERSION that the values below belong to."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "alpha_merge": {"merge_every": 500, "merge_fraction": 0.1, "rule": "as_published"},
    "contextual_sparsity": {
        "channel_sparsity": 0.5,
        "rules": (),
        "estimator_rank": 8,
        "ffn_score": "tokens",
        "dense_tokens": "output",
        "dense_fraction": 0.05,
        "dense_steps": None,
    },
    "full": {},
    "galore": {
        "rank": 128,
        "update_gap": 200,
        "scale": 0.25,
        "projector": "std",
        "optimizer": "adamw",
        "eps": None,
        "targets": ("all-linear",),
        "excess_rank": "refuse",
    },
    "hira": {
        "targets": ("all-linear",),
        "head": "trained",
        "bias": "none",
        "rest": "frozen",
        "rank": 32,
        "form": "residual",
    },
    "lean": {},
    "linear_probe": {},
    "lora": {
        "targets": ("all-linear",),
        "head": "trained",
        "bias": "none",
        "rest": "frozen",
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.0,
        "integer_scaling": False,
    },
    "low_rank": {"targets": ("all-linear",), "rank": 128},
    "lte": {
        "targets": ("all-linear",),
        "head": "trained",
        "bias": "none",
        "rest": "frozen",
        "num_lora_heads": 4,
        "rank": 8,
        "alpha": 16.0,
        "merge_every": 10,
        "eval_stale": False,
    },
    "mhlora": {
        "targets": ("all-linear",),
        "head": "trained",
        "bias": "none",
        "rest": "frozen",
        "num_lora_heads": 4,
        "rank": 8,
        "alpha": 16.0,
        "combine": "mean",
    },
    "nf4": {"targets": ("all-linear",), "double_quant": True, "compute_dtype": "input", "requantize": False},
    "paged_adamw": {"bits": 32},
    "prune": {
        "method": "magnitude",
        "sparsity": 0.5,
        "schedule": "one_shot",
        "every": None,
        "end": None,
        "regrow": False,
        "l1_lambda": 0.0,
    },
    "relora": {"merge_every": 2000, "optimizer_state": "random", "prune_fraction": None, "restart_warmup_steps": 100},
    "velora": {
        "layers": ("v", "down"),
        "num_groups": (32,),
        "scale": 1.0,
        "init": "batch_average_once",
        "precision": "native",
    },
}


@pytest.mark.parametrize("name", registry.parts())
def test_golden_defaults(name: str) -> None:
    """Ids leave defaults out, so a default that changes would change what old ids mean."""
    fields = registry.part(name).Options.model_fields
    found = {option: field.default for option, field in fields.items() if not field.is_required()}
    assert name in DEFAULTS, f"new part {name!r}: write its defaults into tests/test_golden_defaults.py: {found!r}"
    new = {option: default for option, default in found.items() if option not in DEFAULTS[name]}
    assert not new, f"{name}: new options, which change no id: write them into tests/test_golden_defaults.py: {new!r}"
    assert found == DEFAULTS[name], (
        f"{name}: a default changed, so old ids would mean other runs: raise SPEC_VERSION in lowrank/spec.py with it, "
        "then VERSION and the value here"
    )


def test_the_version_belongs_to_these_defaults() -> None:
    assert SPEC_VERSION == VERSION, "SPEC_VERSION was raised: set VERSION here, after the defaults"


def test_no_part_is_left_over() -> None:
    assert set(DEFAULTS) <= set(registry.parts()), "a part that is gone still stands in the table"


def test_a_required_option_stays_required() -> None:
    """An option that gets a default later would give old specs, which name it, another id."""
    required = {n: sorted(o for o, f in p.Options.model_fields.items() if f.is_required()) for n, p in PARTS}
    assert {name: options for name, options in required.items() if options} == {"prune": ["start"]}


PARTS = list(registry.parts().items())
