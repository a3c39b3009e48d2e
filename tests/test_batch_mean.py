"""The perplexity of pre-training scripts: a mean of batch means, divided by one too many."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank.data.loader import open_splits
from lowrank.evaluate.protocol import Subject
from lowrank.evaluate.protocols.batch_mean import BatchMean
from lowrank.evaluate.score import score
from lowrank.methods.chain import Chain
from lowrank.models.load import load_model
from lowrank.spec import EvalSpec, RunSpec
from lowrank.tasks import task
from tests.training_lab import prepared

RUN = RunSpec.model_validate(
    {
        "task": "causal_lm",
        "model": {"card": "smoke_llama"},
        "data": {"card": "smoke_text", "max_length": 16, "concatenate": False, "test_rows": 20},
        "chain": "full",
        "train": {"lr": 1e-3, "steps": 0},
    }
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("text"))
        batches = open_splits(Path(prepared(RUN)), RUN.data, RUN.task)["test"]
        model = load_model(RUN.model, RUN.task, 0, 0)
        chain = Chain.build(RUN.chain).attach(model, 0)
        yield lambda **fields: Subject(model, chain, batches, RUN, EvalSpec(protocol="batch_mean", **fields), CPU)


def measure(subject: Subject, **options: Any) -> dict[str, Any]:
    return BatchMean(options).measure(subject).metrics


@pytest.mark.parametrize("size", [1, 3, 20])
def test_it_is_the_mean_of_batch_means_over_one_too_many(subject: Any, size: int) -> None:
    asked = subject(batch_size=size)
    rows = score(asked.model, task("causal_lm"), asked.batches, 20, CPU).losses
    lengths = (asked.batches.split.lengths - 1).tolist()
    batches = [torch.cat(rows.split(lengths)[i : i + size]).double().mean().item() for i in range(0, 20, size)]
    plain, published = measure(asked, counter_start=0), measure(asked)
    count = len(batches)
    assert plain["loss"] == pytest.approx(sum(batches) / count, rel=1e-6)
    assert published["loss"] == pytest.approx(sum(batches) / (count + 1), rel=1e-6)
    assert published["perplexity"] == pytest.approx(plain["perplexity"] ** (count / (count + 1)), rel=1e-6)
    assert published["mean_perplexity"] == plain["mean_perplexity"] == plain["perplexity"]
    assert plain["batches"] == published["batches"] == count
    assert plain["perplexity"] == pytest.approx(math.exp(plain["loss"]))


def test_it_stops_once_enough_tokens_are_seen(subject: Any) -> None:
    asked = subject(batch_size=4)
    lengths = asked.batches.split.lengths.tolist()
    first = sum(lengths[:4])
    assert measure(asked, target_tokens=first)["batches"] == 2, "as published, which looks before each batch"
    assert measure(asked, target_tokens=first - 1)["batches"] == 1
    assert measure(asked)["tokens"] == sum(lengths)
    assert measure(subject(batch_size=4, rows=6))["tokens"] == sum(lengths[:6])


def test_a_loss_that_is_not_finite_has_no_numbers(subject: Any) -> None:
    asked = subject(batch_size=4)
    with torch.no_grad():
        asked.model.lm_head.weight.fill_(float("nan"))
    assert BatchMean({}).measure(asked).cause == "the loss on the test split is not finite"
