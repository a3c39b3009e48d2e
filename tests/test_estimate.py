"""What runs take of a GPU: rows, steps, hours, refusals, and the tables made of them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from lowrank import costs, needs
from lowrank.asked import FILE, key
from lowrank.cards import data_card
from lowrank.errors import ConfigError
from lowrank.estimate import estimate, fits, refuse_what_does_not_fit, split_rows, steps_of
from lowrank.forecasts import forecast_of, question
from lowrank.gpus import GPUS, USABLE, GpuFacts
from lowrank.measure.forecast import forecast
from lowrank.measure.tally import flops
from lowrank.planning import make_plan
from lowrank.site import Site
from lowrank.spec import DataSpec, EvalSpec, RunSpec
from lowrank.study import load_study, points, studies
from lowrank.train.loop import EVAL_BATCH_SIZE

A100 = GPUS[1]
CLUSTER = Path(__file__).parents[1] / "docs" / "cluster.md"


def run(chain: Any = "lora", **sections: Any) -> RunSpec:
    raw: dict[str, Any] = {
        "task": "classification",
        "model": {"card": "smoke_bert"},
        "data": {"card": "ag_news", "max_length": 24, "train_rows": 3200, "validation_rows": 640},
        "chain": chain,
        "train": {"lr": 1e-3, "epochs": 2, "batch_size": 32},
    }
    for name, section in sections.items():
        raw[name] = {**raw[name], **section} if isinstance(section, dict) else section
    return RunSpec.model_validate(raw)


def rows(**spec: Any) -> dict[str, int]:
    return split_rows(DataSpec(**spec), data_card(spec["card"]))


def test_rows_are_those_of_the_files_cut_as_the_splits_are() -> None:
    assert rows(card="ag_news") == {"train": 108_000, "validation": 12_000, "test": 7600}
    assert rows(card="sst2") == {"train": 53_879, "validation": 872, "test": 13_470}
    assert rows(card="imdb", train_rows=100, test_rows=30_000) == {"train": 100, "validation": 2500, "test": 25_000}
    # 600 articles of about 4,000 tokens, in rows of 256
    assert rows(card="wikitext2", max_length=256)["train"] == 9375
    assert rows(card="wikitext2_lines", concatenate=False)["validation"] == 2461


def test_a_card_that_says_nothing_leaves_what_the_spec_says() -> None:
    assert rows(card="wiki_sciences", train_rows=40) == {"train": 40}
    told = {"card": "wiki_sciences", "train_rows": 40, "validation_rows": None}
    with pytest.raises(ConfigError, match=r"data card 'wiki_sciences': size\.rows says nothing of validation"):
        estimate(run(data=told), [], A100, True)


def test_every_card_of_a_large_scale_says_how_many_rows_it_has() -> None:
    plan = make_plan("paper", studies())
    used = {entry["spec"]["card"] for entry in plan["data"].values()}
    assert not [name for name in used if not data_card(name).size.rows]
    assert all(entry["steps"] for entry in plan["runs"].values() if entry["spec"]["train"].get("steps") != 0)


def test_steps_are_epochs_of_batches() -> None:
    assert steps_of(run()) == 200
    assert steps_of(run(train={"epochs": None, "steps": 7})) == 7


def test_a_run_is_its_steps_its_validations_and_its_scores() -> None:
    spec = run()
    found, alone = forecast_of(spec), estimate(spec, [], A100, True)
    passes = 200 * (flops(found.micro_batch) + flops(found.update))
    assert alone.flops == passes + round(2 * 640 / EVAL_BATCH_SIZE * flops(found.eval_batch))
    scored = estimate(spec, [EvalSpec(split="test", rows=256)], A100, True)
    assert scored.flops - alone.flops == pytest.approx(2 * flops(found.eval_batch))
    cut = estimate(run(train={"micro_batch_size": 8}), [], A100, True)
    assert cut.flops == pytest.approx(alone.flops, rel=0.05)
    assert cut.seconds > alone.seconds, "more kernels to start"
    assert alone.results_bytes - estimate(spec, [], A100, False).results_bytes == found.changed_bytes


def test_what_changes_no_size_is_one_question() -> None:
    base = run([{"part": "lora", "alpha": 8}])
    same = [
        run([{"part": "lora", "alpha": 32}]),
        run([{"part": "lora", "alpha": 8}], seed=3),
        run([{"part": "lora", "alpha": 8}], train={"lr": 1e-4, "epochs": 5}),
    ]
    other = [
        run([{"part": "lora", "rank": 4}]),
        run([{"part": "lora", "dropout": 0.1}]),
        run("hira"),
        run(train={"micro_batch_size": 8}),
        run(train={"precision": "bf16"}),
        run(train={"select": "best"}),
        run(data={"max_length": 48}),
        run(model={"layers": 1}),
    ]
    assert {key(question(spec)) for spec in same} == {key(question(base))}
    assert len({key(question(spec)) for spec in [base, *other]}) == 9


def test_the_committed_forecasts_are_those_of_this_code() -> None:
    """A sample of the cheapest; `python -m lowrank.forecasts --all` answers every question anew."""
    sample = [point.spec for point in points(load_study("peft_comparison"), "paper") if point.arm == "linear_probe"][:1]
    sample += [point.spec for point in points(load_study("lr_ratio"), "paper") if point.arm == "lora"][:1]
    assert FILE.is_file()
    for spec in sample:
        fresh, kept = forecast(spec, 1000, EVAL_BATCH_SIZE), forecast_of(spec)
        works = ("micro_batch", "update", "eval_batch")
        assert fresh.model_dump(exclude=set(works)) == kept.model_dump(exclude=set(works))
        assert [sum(count for *_, count in getattr(fresh, work)) for work in works] == [
            sum(count for *_, count in getattr(kept, work)) for work in works
        ]


def tiny_gpu(spec: RunSpec, share: float) -> GpuFacts:
    """A GPU with some share of the memory that a run needs."""
    gib = share * forecast_of(spec).peak_bytes / USABLE / 2**30
    return GpuFacts("T1 0 GB", gib, None, 1.0, 100.0)  # type: ignore[arg-type]  # a fraction of a GiB


def test_a_run_that_fits_is_not_refused() -> None:
    spec = run()
    refuse_what_does_not_fit(spec, tiny_gpu(spec, 1.01))
    assert fits(forecast_of(spec), A100)


def test_a_run_that_cannot_fit_is_refused_with_what_would() -> None:
    # Long rows: their activations are more than the weights, and more than an evaluation of 128 of them keeps.
    spec = run("full", data={"max_length": 48}, train={"batch_size": 1024})
    with pytest.raises(ConfigError) as caught:
        refuse_what_does_not_fit(spec, tiny_gpu(spec, 0.6))
    told = str(caught.value)
    assert told.startswith("full on smoke_bert needs ")
    assert "GB of a T1 0 GB are for tensors; would fit: train.micro_batch_size 512, accumulated to the same" in told
    assert "model.gradient_checkpointing true" in told
    assert "a GPU such as A100 40 GB or A100 80 GB" in told


def test_bf16_on_a_gpu_without_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no bfloat16 units"):
        estimate(run(train={"precision": "bf16"}), [], GPUS[-1], True)


def test_packs_ask_for_what_their_runs_are_expected_to_take() -> None:
    plan = make_plan("paper", ["lr_ratio"])
    found = costs.estimates(plan, A100)
    for pack in plan["packs"].values():
        seconds = sum(found[member].seconds for member in pack["members"])
        assert pack["expected_minutes"] == pytest.approx(seconds / 60)
        assert pack["minutes"] >= 2 * pack["expected_minutes"]
        assert pack["gpus"] == 1
        assert pack["mem_mb"] > 6000
    (study, everything) = costs.study_rows(plan, A100)
    assert study["runs"] == len(plan["runs"])
    assert study["gpu_hours"] == everything["gpu_hours"] == pytest.approx(sum(e.seconds for e in found.values()) / 3600)
    told = costs.told(plan, runs=True)
    assert all(run in told for run in plan["runs"])
    assert "docs/gpu.md has what of this was measured" in told


def test_packs_are_cut_by_hours_and_told_how_many_jobs_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_plan("paper", ["lr_ratio"])
    monkeypatch.setattr(needs, "PACK_HOURS", 10)
    plan = make_plan("paper", ["lr_ratio"])
    hours = {name: pack["expected_minutes"] / 60 for name, pack in plan["packs"].items()}
    assert max(hours.values()) <= 10 < max(pack["expected_minutes"] / 60 for pack in whole["packs"].values())
    assert sorted(r for p in plan["packs"].values() for r in p["members"]) == sorted(whole["runs"])
    assert costs.time_limits(plan, Site(max_runtime_minutes=600)).endswith("; no pack is expected to take longer.")
    long, jobs = sum(h > 5 for h in hours.values()), sum(math.ceil(h / 5) for h in hours.values())
    told = costs.time_limits(plan, Site(max_runtime_minutes=300))
    assert f"{long} of {len(hours)} packs are expected to take longer, the longest 2 jobs" in told
    assert told.endswith(f"{jobs} jobs in all.")


def test_a_run_that_fits_no_gpu_is_refused_when_it_is_planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("gpu: {model: v100, memory_gb: 32}\n")
    monkeypatch.setenv("LOWRANK_SITE", str(site))
    with pytest.raises(ConfigError, match=r"superrelora: run \S+: .* needs \d+ GB .* of a V100 32 GB .* would fit: "):
        make_plan("paper", ["superrelora"])


def test_the_page_on_clusters_has_the_table_that_would_be_written() -> None:
    text = CLUSTER.read_text()
    assert re.search(r"<!-- costs -->\n\|", text)
    assert text == costs.show(text), "write it anew: python -m lowrank.costs"
