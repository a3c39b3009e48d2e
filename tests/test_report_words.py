"""Words from numbers, perplexities of training losses, tensors of a layer, and the size of a method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lowrank.errors import ConfigError
from lowrank.report.context import Context
from lowrank.report.opened import open_study
from lowrank.report.views import parse_views
from lowrank.sizing import sizes
from lowrank.train.history import write_history

RUNS = [
    {"arm": "lora", "bytes": 100.0, "accuracy": 0.8},
    {"arm": "nf4", "bytes": 40.0, "accuracy": 0.79},
    {"arm": "full", "bytes": 400.0, "accuracy": 0.9},
    {"arm": "lost", "bytes": None, "accuracy": None},
]
WORDS = {
    "title": "T",
    "note": "N",
    "kind": "words",
    "table": "means",
    "baseline": {"arm": ["lora"]},
    "words": {"memory": {"column": "bytes", "limits": [[0.5, "Low"], [1, "Medium"]], "beyond": "High"}},
    "uses": [
        {"column": "bytes", "goal": "min", "text": "small machines"},
        {"column": "accuracy", "goal": "max", "text": "hard tasks"},
    ],
    "otherwise": "anything",
}
MEANS = {"title": "T", "note": "N", "kind": "summary", "by": ["arm"], "metrics": ["bytes", "accuracy"]}


def study(folder: Path, **tables: Any) -> Context:
    rows = [
        {"run": f"run-{index}", "status": "ok" if row["bytes"] else "missing", "cause": "", "seed": 0, **row}
        for index, row in enumerate(RUNS)
    ]
    pd.DataFrame(rows).to_csv(folder / "runs.csv", index=False)
    (folder / "s.yaml").write_text("study: s\ndocument: d.md\nartefacts: []\n")
    views = parse_views({"tables": tables}, "s")
    return open_study("s", views, folder / "runs.csv", folder, "laptop", reported=folder, runs=folder)


def test_words_follow_from_ratios_and_uses_from_what_is_best(tmp_path: Path) -> None:
    found = study(tmp_path, means=MEANS, words=WORDS).table("words").set_index("arm")
    assert found["memory"].to_dict() | {"lost": None} == {"lora": "Medium", "nf4": "Low", "full": "High", "lost": None}
    assert found["memory_ratio"]["nf4"] == pytest.approx(0.4)
    assert pd.isna(found["memory"]["lost"]), "what is missing has no word"
    assert found["use"].to_dict() == {
        "lora": "anything",
        "nf4": "small machines",
        "full": "hard tasks",
        "lost": "anything",
    }


def test_words_need_one_baseline(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"baseline .* names 4 rows of means; allowed: one"):
        study(tmp_path, means=MEANS, words={**WORDS, "baseline": {}}).table("words")


def test_a_training_loss_gives_the_perplexity_that_it_gives(tmp_path: Path) -> None:
    for index in range(len(RUNS)):
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
