"""Packs at smoke scale: a tiny BERT on a few sentences, trained by the real loop in a folder of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from lowrank import jobs
from lowrank.cards import data_card, model_card, prepared_id, run_pins, tokenizer_card
from lowrank.data.fetch import fetch
from lowrank.data.prepare import prepare
from lowrank.files import MANIFEST, read_json
from lowrank.run_folder import HISTORY, RUNS, WEIGHTS
from lowrank.spec import DataSpec, RunSpec, run_id
from lowrank.stacks import Room, stacks
from lowrank.train.history import read_history
from lowrank.train.pack import Member, Pack

DATA = DataSpec(card="smoke_topics", max_length=16, train_rows=40, validation_rows=16, test_rows=16)
"""40 rows: batches of 16 leave a last one of 8."""

ROOM = Room(10**10)
"""More memory than anything here needs."""


def run_spec(
    chain: Any = "lora",
    *,
    seed: int = 0,
    data: dict[str, Any] | None = None,
    dtype: str = "float32",
    dropout: float | None = None,
    **train: Any,
) -> RunSpec:
    """A run of the smoke cards: 16 rows a step, two epochs of three steps."""
    length = {} if "steps" in train else {"epochs": 2}
    return RunSpec.model_validate(
        {
            "task": "classification",
            "model": {"card": "smoke_bert", "dtype": dtype, "dropout": dropout},
            "data": {**DATA.model_dump(), **(data or {})},
            "chain": chain,
            "train": {"lr": 1e-2, "batch_size": 16, **length, **train},
            "seed": seed,
        }
    )


def prepared(spec: RunSpec) -> Path:
    """Fetches the cards and prepares the data below the current folder, once."""
    model, data = model_card(spec.model.card), data_card(spec.data.card)
    folder = jobs.PREPARED / prepared_id(spec.data, model, data)
    if not folder.exists():
        for card in (model, tokenizer_card(model), data):
            fetch(card)
        prepare(spec.data, model.name, Path("resources/downloads"), folder)
    return folder


def member(spec: RunSpec, code: str = "code") -> Member:
    pins = run_pins(model_card(spec.model.card), data_card(spec.data.card))
    return Member(run_id(spec, pins), spec, pins, code)


def pack_of(*specs: RunSpec, code: str = "code", **fields: Any) -> Pack:
    """A pack of runs that share the data of the first."""
    members = tuple(member(spec, code) for spec in specs)
    labels = len(data_card(specs[0].data.card).labels)
    together = tuple(tuple(members[i].run for i in stack.members) for stack in stacks(specs, labels, ROOM))
    return Pack("pack", members, together, prepared(specs[0]), **fields)


def weights(run: str, folder: Path = RUNS) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(folder / run / WEIGHTS)
    return tensors


def history(run: str, folder: Path = RUNS) -> list[dict[str, Any]]:
    return read_history(folder / run / HISTORY)


def manifest(run: str, folder: Path = RUNS) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / run / MANIFEST)
    return found
