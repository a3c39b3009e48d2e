"""Words from numbers, perplexities of training losses, tensors of a layer, and the size of a method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import ttest_rel

from lowrank.errors import ConfigError
from lowrank.report import build  # noqa: F401 - registers the kinds
from lowrank.report.context import Context
from lowrank.report.opened import open_study
from lowrank.report.views import parse_views
from lowrank.sizing import sizes
from lowrank.train.history import write_history

RUNS = {
    "lora": {"bytes": [100.0, 100.0, 100.0], "accuracy": [0.80, 0.81, 0.79]},
    "nf4": {"bytes": [40.0, 40.0, 40.0], "accuracy": [0.79, 0.82, 0.76]},
    "full": {"bytes": [400.0, 400.0, 400.0], "accuracy": [0.90, 0.91, 0.89]},
}
WORDS = {
    "title": "T",
    "note": "N",
    "kind": "words",
    "table": "means",
    "baseline": {"arm": ["lora"]},
    "words": {
        "memory": {"column": "bytes", "limits": [[0.5, "Low"], [1, "Medium"]], "beyond": "High"},
        "quality": {"column": "accuracy", "limits": [[0.98, "Medium"], [1.02, "High"]], "beyond": "Highest"},
    },
    "uses": [
        {"column": "bytes", "goal": "min", "text": "small machines"},
        {"column": "accuracy", "goal": "max", "text": "hard tasks"},
    ],
    "otherwise": "anything",
}
MEANS = {"title": "T", "note": "N", "kind": "summary", "by": ["arm"], "metrics": ["bytes", "accuracy"]}


def study(
    folder: Path, runs: dict[str, dict[str, list[float]]] = RUNS, claims: dict[str, Any] | None = None, **tables: Any
) -> Context:
    rows: list[dict[str, Any]] = [
        {"arm": arm, "status": "ok", "cause": "", "seed": seed, **{name: value[seed] for name, value in found.items()}}
        for arm, found in runs.items()
        for seed in range(len(found["bytes"]))
    ]
    rows.append({"arm": "lost", "status": "missing", "cause": "", "seed": 0})
    rows = [{"run": f"run-{index}", **row} for index, row in enumerate(rows)]
    pd.DataFrame(rows).to_csv(folder / "runs.csv", index=False)
    (folder / "s.yaml").write_text("study: s\ndocument: d.md\nartefacts: []\n")
    views = parse_views({"tables": tables, "claims": claims}, "s")
    return open_study("s", views, folder / "runs.csv", folder, "laptop", reported=folder, runs=folder)


def test_words_follow_from_intervals_of_ratios_and_uses_from_what_is_best(tmp_path: Path) -> None:
    found = study(tmp_path, means=MEANS, words=WORDS).table("words").set_index("arm")
    assert found["memory"][["lora", "nf4", "full"]].to_dict() == {"lora": "Medium", "nf4": "Low", "full": "High"}
    assert found["memory_ratio"]["nf4"] == found["memory_ratio_high"]["nf4"] == pytest.approx(0.4)
    assert pd.isna(found["memory"]["lost"]), "what is missing has no word"
    low, high = ttest_rel(RUNS["nf4"]["accuracy"], RUNS["lora"]["accuracy"]).confidence_interval(0.95)
    assert found["quality_ratio_low"]["nf4"] == pytest.approx(1 + low / 0.8)
    assert found["quality_ratio_high"]["nf4"] == pytest.approx(1 + high / 0.8)
    assert found["quality"][["nf4", "full"]].to_dict() == {"nf4": "Medium or High or Highest", "full": "Highest"}


def test_a_use_is_left_open_where_being_best_is(tmp_path: Path) -> None:
    def use(**changed: Any) -> Any:
        three = {arm: {**found, **changed.get(arm, {})} for arm, found in RUNS.items()}
        rule = {**WORDS, "where": {"arm": list(three)}}
        return study(tmp_path, three, means=MEANS, words=rule).table("words").set_index("arm")["use"].to_dict()

    assert use() == {"nf4": "small machines", "full": "hard tasks", "lora": "anything"}
    near = {"accuracy": [0.85, 0.95, 0.80]}
    assert use(lora=near) == {
        "nf4": "small machines",
        "full": "hard tasks or anything",
        "lora": "hard tasks or anything",
    }


WORD = {"check": "word", "table": "words"}


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        ({"where": {"arm": ["nf4"]}, "column": "memory", "equals": "Low"}, "reproduced"),
        ({"where": {"arm": ["nf4"]}, "column": "memory", "equals": "High"}, "differs"),
        ({"where": {"arm": ["nf4"]}, "column": "quality", "equals": "High"}, "not resolved"),
        ({"where": {"arm": ["full"]}, "column": "quality", "equals": "High"}, "differs"),
        ({"where": {"arm": ["lora"]}, "column": "memory", "equals": "Medium"}, "by construction"),
        ({"where": {"arm": ["lost"]}, "column": "memory", "equals": "Low"}, "not run"),
        ({"where": {"arm": ["gone"]}, "column": "memory", "equals": "Low"}, "not run"),
    ],
)
def test_a_word_is_reproduced_where_its_interval_allows_no_other(
    tmp_path: Path, claim: dict[str, Any], verdict: str
) -> None:
    found = study(tmp_path, claims={"c": {**WORD, **claim}}, means=MEANS, words=WORDS).check("c")
    assert found.verdict == verdict, found


def test_a_side_at_the_edge_of_its_grid_leaves_a_word_open(tmp_path: Path) -> None:
    claim = {**WORD, "where": {"arm": ["full"]}, "column": "quality", "equals": "Highest"}
    runs = {**RUNS, "full": {**RUNS["full"], "accuracy": [0.90, 0.92, 0.89]}}
    context = study(tmp_path, runs, {"c": claim}, means=MEANS, words=WORDS)
    assert context.check("c").verdict == "reproduced"
    context.tables["words"] = context.table("words").assign(edge=lambda found: found["arm"].map({"lora": "low"}))
    context.tables["words"]["edge"] = context.tables["words"]["edge"].fillna("")
    assert context.check("c").verdict == "not resolved"
    assert context.check("c").cause.endswith("; but lora: tuned to the edge of its grid")


def test_one_seed_has_a_ratio_and_no_word(tmp_path: Path) -> None:
    one = {arm: {name: values[:1] for name, values in found.items()} for arm, found in RUNS.items()}
    claim = {**WORD, "where": {"arm": ["full"]}, "column": "quality", "equals": "Highest"}
    context = study(tmp_path, one, {"c": claim}, means=MEANS, words=WORDS)
    assert context.table("words").set_index("arm")["quality_ratio"]["full"] == pytest.approx(0.9 / 0.8)
    assert (context.check("c").verdict, context.check("c").cause) == ("not resolved", "full: one seed")


def test_words_need_one_baseline(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"baseline .* names 4 rows of means; allowed: one"):
        study(tmp_path, means=MEANS, words={**WORDS, "baseline": {}}).table("words")


def test_a_training_loss_gives_the_perplexity_that_it_gives(tmp_path: Path) -> None:
    for index in range(3 * len(RUNS)):
        rows = [{"step": 1, "epoch": 1.0, "train_loss": 9.0}, {"step": 2, "epoch": 1.5, "train_loss": 1.0}]
        (tmp_path / f"run-{index}").mkdir()
        write_history(
            tmp_path / f"run-{index}" / "history.parquet", [*rows, {"step": 3, "epoch": 2.0, "train_loss": 2.0}]
        )
    view = {"title": "T", "note": "N", "kind": "training_perplexity", "by": ["arm"], "metrics": ["accuracy"]}
    found = study(tmp_path, ppl=view).table("ppl").set_index("arm")
    assert found["training_perplexity"]["lora"] == pytest.approx(math.exp(1.5)), "the last epoch's mean"
    assert pd.isna(found["training_perplexity"]["lost"])


LORA = {"label": "LoRA", "card": "smoke_bert", "chain": [{"part": "lora", "rank": 4, "targets": ["query"]}]}
NF4 = {"label": "QLoRA", "card": "smoke_bert", "chain": ["nf4", {"part": "lora", "rank": 4}]}
HIRA = {"label": "HiRA", "card": "smoke_bert", "chain": [{"part": "hira", "rank": 4}]}


def test_a_layer_is_described_by_its_own_tensors(tmp_path: Path) -> None:
    view = {"title": "T", "note": "N", "kind": "dataflow", "rows": [LORA, NF4, HIRA]}
    found = study(tmp_path, layers=view).table("layers")
    lora = found[found["label"] == "LoRA"].set_index("tensor")
    assert lora["shape"][["x", "weight", "lora_A", "lora_B", "y"]].tolist() == [
        "N × 32", "32 × 32", "4 × 32", "32 × 4", "N × 32"]  # fmt: skip
    assert lora["trains"][["weight", "lora_A"]].tolist() == ["no", "yes"]
    assert set(found[found["label"] == "HiRA"]["way"]) == {"multiplied into the weight"}
    assert set(lora["way"]) == {"added to the product"}
    coded = found[(found["label"] == "QLoRA") & (found["role"] == "base")]
    assert "uint8" in set(coded["dtype"])


KEPT = [{"part": "full"}, {"part": "velora", "layers": "down", "num_groups": 8, "init": "random"}]


def test_what_a_layer_keeps_in_place_of_its_input_is_a_row(tmp_path: Path) -> None:
    row = {"label": "VeLoRA", "card": "smoke_llama", "task": "causal_lm", "chain": KEPT}
    view = {"title": "T", "note": "N", "kind": "dataflow", "rows": [row]}
    found = study(tmp_path, layers=view).table("layers")
    kept = found[found["role"] == "kept"].set_index("tensor")["shape"]
    width = int(found.set_index("tensor")["shape"]["x"].removeprefix("N × "))
    assert kept.to_dict() == {"z": "N × 8", "vector": str(width // 8)}


def test_a_method_is_sized_without_files() -> None:
    said = sizes("llama_65b", "full", task="causal_lm", dtype="bfloat16")
    assert "65,285,660,672 (100.0000%)" in said
    assert "130.571 GB" in said
    said = sizes("smoke_bert", "[nf4, {part: lora, rank: 4}]", batch_size=2, tokens=8)
    assert "nf4+lora" in said
    assert "total" in said
    with pytest.raises(ConfigError, match="did you mean 'lora'"):
        sizes("smoke_bert", "lroa")
    with pytest.raises(ConfigError, match="not valid YAML"):
        sizes("smoke_bert", "[lora")
