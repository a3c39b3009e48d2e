"""The published evaluation: right with all switches off, and each switch does what the document's script did."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from lowrank.data.batches import Split
from lowrank.data.documents import document_rows
from lowrank.data.loader import TaskBatches
from lowrank.errors import ConfigError, IntegrityError
from lowrank.evaluate.protocol import Subject
from lowrank.evaluate.protocols.published_lm import PublishedLm
from lowrank.evaluate.score import score
from lowrank.methods.chain import Chain
from lowrank.registry import parse_chain
from lowrank.spec import DataSpec, EvalSpec
from lowrank.tasks import task
from tests.tiny_models import VOCABULARY, llama

PAD = 0
LENGTHS = (3, 9, 5, 12, 2, 7, 4)


class Texts:
    """A prepared text of documents of the given lengths, and a model to score on it."""

    def __init__(self, folder: Path, lengths: tuple[int, ...] = LENGTHS) -> None:
        starts = torch.tensor([0, *lengths]).cumsum(0)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(1, VOCABULARY, (int(starts[-1]),), generator=generator, dtype=torch.int32)
        save_file({"tokens": tokens, "offsets": starts, "documents": starts.clone()}, folder / "t.safetensors")
        self.split = Split(folder / "t.safetensors")
        self.batches = TaskBatches(self.split, DataSpec(card="x", max_length=16), "causal_lm", PAD)
        self.model = llama()
        self.chain = Chain.build(parse_chain("full")).attach(self.model)

    def measure(
        self, batch_size: int = 3, rows: int | None = None, task_name: str = "causal_lm", **options: Any
    ) -> Any:
        spec = EvalSpec(protocol="published_lm", options=options, batch_size=batch_size, rows=rows)
        subject: Any = SimpleNamespace(task=task_name)
        return PublishedLm(options).measure(
            Subject(self.model, self.chain, self.batches, subject, spec, torch.device("cpu"))
        )


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    return Texts(tmp_path)


def published(model: nn.Module, ids: Tensor, mask: Tensor, size: int) -> tuple[float, float, float]:
    """The document's loop in its own order of operations: loss, accuracy, tokens."""
    total = right = tokens = 0.0
    for start in range(0, len(ids), size):
        rows = torch.stack(list(ids[start : start + size].unbind(1)))  # a list of positions, as its loader gives it
        real = torch.stack(list(mask[start : start + size].unbind(1)))
        if rows.shape[0] < rows.shape[1]:
            rows, real = rows.T, real.T
        with torch.no_grad():
            logits = model(input_ids=rows, attention_mask=real.long()).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        total += loss.item() * rows.shape[0]
        right += ((logits.argmax(-1)[:, :-1] == rows[:, 1:]) & real[:, 1:]).sum().item()
        tokens += real[:, 1:].sum().item()
    return total / tokens, right / tokens, tokens


@pytest.mark.parametrize("length", [4, 8])
def test_all_switches_off_is_the_ordinary_score_of_the_same_rows(texts: Texts, length: int) -> None:
    found = texts.measure(max_length=length).metrics
    rows = DataSpec(card="x", max_length=length, concatenate=False)
    batches = TaskBatches(texts.split, rows, "causal_lm", PAD)
    expected = score(texts.model.eval(), task("causal_lm"), batches, 4, torch.device("cpu"))
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert (found["units"], found["accuracy"]) == (expected.units, pytest.approx(expected.accuracy))
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["pad_share"] == 0


@pytest.mark.parametrize(("length", "size"), [(8, 4), (8, 7), (4, 5), (16, 5)])
def test_all_switches_on_is_the_documents_own_loop(texts: Texts, length: int, size: int) -> None:
    """At (4, 5) the first batch is longer than the rows, so that the document's guard happens to turn it right."""
    everything = {"transposed": True, "pads_in_labels": True, "divisor": "published"}
    found = texts.measure(size, max_length=length, **everything).metrics
    ids, mask = document_rows(texts.split, length, PAD)
    loss, accuracy, tokens = published(texts.model.eval(), ids, mask, size)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["units"] == tokens


def test_each_switch_alone(texts: Texts) -> None:
    clean = texts.measure(max_length=8).metrics
    pads = texts.measure(max_length=8, pads_in_labels=True).metrics
    ids, mask = document_rows(texts.split, 8, PAD)
    assert pads["units"] == len(ids) * 7
    assert pads["pad_share"] == pytest.approx(1 - mask[:, 1:].sum().item() / pads["units"])
    assert pads["accuracy"] == clean["accuracy"], "accuracy never counts padding"
    divided = texts.measure(max_length=8, divisor="published").metrics
    assert divided["loss"] * divided["units"] == pytest.approx(divided["batch_loss"] * len(ids), rel=0.2)
    assert divided["loss"] < clean["loss"]
    turned = texts.measure(max_length=8, transposed=True).metrics
    assert turned["units"] != clean["units"], "the first document of each batch is the column that is not predicted"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 14), st.integers(1, 9))
def test_documents_are_cut_padded_and_limited(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, limit: int
) -> None:
    texts = Texts(tmp_path_factory.mktemp("texts"), tuple(lengths))
    ids, mask = document_rows(texts.split, length, PAD, limit)
    assert ids.shape == mask.shape == (min(limit, len(lengths)), length)
    assert mask.sum(1).tolist() == [min(n, length) for n in lengths[:limit]]
    assert (ids[~mask] == PAD).all()
    assert ids[mask].tolist() == [
        token
        for row, n in enumerate(lengths[:limit])
        for token in texts.split.tokens[sum(lengths[:row]) :][: min(n, length)]
    ]


def test_refusals(texts: Texts, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="protocol published_lm: scores task 'causal_lm', not 'classification'"):
        texts.measure(task_name="classification")
    save_file(
        {"tokens": torch.zeros(2, dtype=torch.int32), "offsets": torch.tensor([0, 2])}, tmp_path / "u.safetensors"
    )
    with pytest.raises(IntegrityError, match=r"u\.safetensors: holds no documents, as a prepared text does"):
        document_rows(Split(tmp_path / "u.safetensors"), 4, PAD)


def test_a_loss_that_is_not_finite_is_an_outcome(texts: Texts) -> None:
    with torch.no_grad():
        texts.model.get_parameter("lm_head.weight").fill_(float("nan"))
    assert texts.measure().cause == "the loss on the test split is not finite"
