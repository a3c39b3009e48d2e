"""The cards of the VeLoRA study: exact sizes, a tokenizer with unused tokens, shards, Alpaca's prompts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lowrank.cards import data_card
from lowrank.data.prompts import instructions
from lowrank.data.readers import read
from lowrank.errors import ConfigError
from lowrank.models.load import skeleton
from lowrank.spec import ModelSpec
from tests.card_files import BERT, ROWS, CardFiles, PreparedFiles


@pytest.mark.parametrize(("card", "parameters"), [("llama_60m", 58_073_600), ("llama_130m", 134_105_856)])
def test_the_documents_models_have_exactly_so_many_parameters(card: str, parameters: int) -> None:
    model = skeleton(ModelSpec(card=card), "causal_lm", 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_tokens_at_the_end_may_be_unused_but_not_occur(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = PreparedFiles(tmp_path, monkeypatch)
    small = {**BERT, "vocab_size": 33}  # the tokenizer has 34 tokens, w29 the last
    written = bench.model

    def model(name: str, files: dict[str, str]) -> None:
        written(name, files, config=small, unused_tokens=1)

    monkeypatch.setattr(bench, "model", model)
    bench.prepare([row for row in ROWS if "w29" not in str(row["text"])])
    with pytest.raises(ConfigError, match="holds token 33; allowed: below 33"):
        bench.prepare(ROWS)


def test_compressed_shards_say_which_split_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = CardFiles(tmp_path, monkeypatch)
    names = {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"}
    source = files.local("shards", dict.fromkeys(names.values(), ""))
    for split, name in names.items():
        (tmp_path / "files" / "shards" / name).write_bytes(gzip.compress(json.dumps({"text": split}).encode()))
    files.write("data", "shards", task="text", reader="jsonl", source=source)
    card = data_card("shards")
    found = read(card, tmp_path / "files" / "shards")
    assert {row.split: row.text for row in found} == {"train": "train", "validation": "validation"}


@pytest.mark.parametrize(("given", "asks"), [("", "write a poem.\n\n### Response:\n"), ("rain", "### Input:\nrain\n")])
def test_alpaca_has_a_prompt_with_and_one_without_input(given: str, asks: str) -> None:
    record = {"instruction": "write a poem.", "input": given, "output": "", "text": "all of it"}
    (row,) = instructions(data_card("alpaca"), "here", record)
    assert asks in row.prompt
    assert row.prompt.endswith("### Response:\n")
    assert ("### Input:" in row.prompt) == bool(given)
    assert row.text == "", "28 of Alpaca's rows have no response"
