"""Preparing: the same splits everywhere, nothing leaks, tokens as the tokenizer gives them, faults explained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lowrank.cards import data_card, model_card, prepared_id
from lowrank.data.readers import SPLITS
from lowrank.errors import ConfigError, IntegrityError
from lowrank.files import REPOSITORY, check_seal
from lowrank.spec import DataSpec
from tests.card_files import BERT, ROWS, WORDS, PreparedFiles, word_tokenizer


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedFiles:
    return PreparedFiles(tmp_path, monkeypatch)


def texts_of(folder: Path, split: str) -> list[list[int]]:
    arrays = load_file(folder / f"{split}.safetensors")
    return [row.tolist() for row in np.split(arrays["tokens"], arrays["offsets"][1:-1])]


def test_tokens_are_what_the_tokenizer_gives(bench: PreparedFiles) -> None:
    rows = [{"text": f"w1 w2 {'w3 ' * n}", "label": "a"} for n in range(2, 32)]
    folder = bench.prepare(rows, max_length=8)
    expected = [[2, 5, 6, *[7] * min(n, 4), 3] for n in range(2, 32)]
    found = [row for split in SPLITS for row in texts_of(folder, split)]
    assert sorted(found) == sorted(expected)


def test_what_is_written(bench: PreparedFiles) -> None:
    folder = bench.prepare(train_rows=20)
    manifest = check_seal(folder)
    assert manifest["id"] == prepared_id(
        DataSpec(card="rows", max_length=8, train_rows=20), model_card("words"), data_card("rows")
    )
    assert manifest["labels"] == ["a", "b"]
    assert manifest["pad_id"] == 0
    assert manifest["special_ids"] == {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    assert manifest["repeats_across_splits"] == 0
    assert {name: facts["rows"] for name, facts in manifest["splits"].items()} == {
        "train": 20, "validation": 3, "test": 8,
    }  # fmt: skip
    for name, facts in manifest["splits"].items():
        arrays = load_file(folder / f"{name}.safetensors")
        assert {key: str(value.dtype) for key, value in arrays.items()} == {
            "tokens": "int32", "offsets": "int64", "labels": "int64",
        }  # fmt: skip
        assert facts["tokens"] == len(arrays["tokens"]) == arrays["offsets"][-1]
        assert facts["rows"] == len(arrays["labels"]) == sum(facts["rows_per_label"].values())
        assert facts["longest"] == np.diff(arrays["offsets"]).max()
        assert facts["cut_rows"] == 0


def test_rows_that_were_cut_are_counted(bench: PreparedFiles) -> None:
    manifest = check_seal(bench.prepare(max_length=4))
    assert all(facts["cut_rows"] == facts["rows"] for facts in manifest["splits"].values())


def test_labels_stay_with_their_texts(bench: PreparedFiles) -> None:
    rows = [{"text": f"{WORDS[i]} {WORDS[i]}", "label": "ab"[i % 2]} for i in range(30)]
    folder = bench.prepare(rows)
    for split in SPLITS:
        labels = load_file(folder / f"{split}.safetensors")["labels"]
        assert [row[1] % 2 for row in texts_of(folder, split)] == labels.tolist()


def test_prepared_bytes_do_not_depend_on_pythons_hash(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lowrank.cards import data_card, model_card\n"
        "from lowrank.data.fetch import fetch; from lowrank.data.prepare import prepare\n"
        "from lowrank.spec import DataSpec; out = Path(sys.argv[1])\n"
        "for card in (data_card('smoke_topics'), model_card('smoke_bert')): fetch(card, out / 'downloads')\n"
        "prepare(DataSpec(card='smoke_topics'), 'smoke_bert', out / 'downloads', out / 'prepared')\n"
        "assert 'torch' not in sys.modules"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], env=environment, check=True)
    one, two = (check_seal(tmp_path / seed / "prepared") for seed in ("1", "2"))
    assert one == two


def test_splits_of_the_data_are_kept_and_repeats_counted(bench: PreparedFiles) -> None:
    text = {name: "".join(json.dumps({"text": f"w{i} w{i + 1}", "label": "a"}) + "\n" for i in numbers)
            for name, numbers in {"train": range(20), "test": range(18, 25)}.items()}  # fmt: skip
    files = {f"data/{name}-0.jsonl": content for name, content in text.items()}
    manifest = check_seal(bench.prepare(card={"source": bench.local("parts", files)}))
    assert [manifest["splits"][name]["rows"] for name in SPLITS] == [18, 2, 7]
    assert manifest["repeats_across_splits"] >= 2


def test_rows_with_a_label_left_out_are_not_read(bench: PreparedFiles) -> None:
    rows = [*ROWS, *({"text": f"other {i}", "label": "c"} for i in range(9))]
    manifest = check_seal(bench.prepare(rows, card={"left_out": ["c"]}))
    assert sum(facts["rows"] for facts in manifest["splits"].values()) == len(ROWS)


@pytest.mark.parametrize("reader", ["json_mapping", "parquet"])
def test_every_reader_gives_the_same_rows(bench: PreparedFiles, reader: str) -> None:
    expected = check_seal(bench.prepare())["files"]
    if reader == "json_mapping":
        source = bench.local("m", {"rows.json": json.dumps({str(i): row for i, row in enumerate(ROWS)})})
    else:
        import pyarrow
        from pyarrow import parquet

        source = bench.local("p", {"rows.parquet": ""})
        numbered = [{**row, "label": "ab".index(row["label"])} for row in ROWS]
        parquet.write_table(pyarrow.Table.from_pylist(numbered), Path(source["path"]) / "rows.parquet")
    assert check_seal(bench.prepare(card={"reader": reader, "source": source}))["files"] == expected


TEXT = {"task": "text", "labels": []}


def test_text_is_one_stream_with_its_documents_kept(bench: PreparedFiles) -> None:
    folder = bench.prepare(card=TEXT)
    manifest = check_seal(folder)
    kept = []
    for split in SPLITS:
        arrays = load_file(folder / f"{split}.safetensors")
        documents = [row.tolist() for row in np.split(arrays["tokens"], arrays["documents"][1:-1])]
        assert all(row[0] == 2 and row[-1] == 3 and len(row) == 5 for row in documents), "no word is cut off"
        assert manifest["splits"][split]["documents"] == len(documents)
        lengths = np.diff(arrays["offsets"])
        assert (lengths[:-1] == 8).all()
        assert 2 <= lengths[-1] <= 8
        assert len(arrays["tokens"]) - arrays["offsets"][-1] <= 1
        kept += documents
    assert len(kept) == len(ROWS), "no document is in two splits or in none"


def test_documents_end_with_the_end_token_where_the_tokenizer_adds_none(bench: PreparedFiles) -> None:
    folder = bench.prepare(tokenizer=word_tokenizer(("<|endoftext|>", "[UNK]")), card=TEXT)
    arrays = load_file(folder / "train.safetensors")
    assert (arrays["tokens"][arrays["documents"][1:] - 1] == 0).all()
    assert check_seal(folder)["pad_id"] == 0


def test_documents_that_are_not_concatenated_are_rows_of_their_own(bench: PreparedFiles) -> None:
    rows = [{"text": f"w1 w2 {'w3 ' * n}"} for n in range(2, 32)]
    folder = bench.prepare(rows, card=TEXT, max_length=8, concatenate=False)
    expected = sorted([2, 5, 6, *[7] * n, 3][:8] for n in range(2, 32))
    assert sorted(row for split in SPLITS for row in texts_of(folder, split)) == expected
    splits = check_seal(folder)["splits"].values()
    assert sum(facts["cut_rows"] for facts in splits) == sum(n > 4 for n in range(2, 32))
    assert all(facts["rows"] == facts["documents"] for facts in splits)


def test_blank_rows_and_texts_on_other_topics_are_left_out_where_the_card_says_so(bench: PreparedFiles) -> None:
    rows = [*ROWS, {"text": " \n", "label": "a"}, *({"text": f"other {i}", "label": "c"} for i in range(9))]
    manifest = check_seal(bench.prepare(rows, card={**TEXT, "left_out": ["c"], "blank": "skipped"}))
    assert sum(facts["documents"] for facts in manifest["splits"].values()) == len(ROWS)


DATA = "data card 'rows': rows.jsonl:"


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (IntegrityError, f"{DATA}1: label is 'c' (allowed: a, b)", {"rows": [{"text": "w1", "label": "c"}]}),
        (IntegrityError, f"{DATA}1: label is 2 (allowed: a, b)", {"rows": [{"text": "w1", "label": 2}]}),
        (
            IntegrityError,
            f"{DATA}41: text is '  '; allowed: a text that says something",
            {"rows": [*ROWS, {"text": "  ", "label": "a"}]},
        ),
        (ConfigError, "data 'rows': split 'test' has 0 rows; allowed: two or more", {"test_fraction": 0.0}),
        (ConfigError, "data 'rows': split 'validation' has 1 rows; allowed: two or more", {"validation_rows": 1}),
        (
            ConfigError,
            "data 'rows': train_rows is 1000; allowed: up to 29, the rows of that split",
            {"train_rows": 1000},
        ),
        (
            ConfigError,
            "max_length is 33; allowed: up to 32, the positions of model card 'words'",
            {"max_length": 33},
        ),
        (
            ConfigError,
            "data card 'rows': unknown reader 'json'; did you mean 'jsonl'? "
            "(allowed: film_reviews, json_mapping, jsonl, mmlu_examples, parquet, wikitext)",
            {"card": {"reader": "json"}},
        ),
    ],
)
def test_faults_in_data_name_the_row_or_the_value(
    bench: PreparedFiles, error: type[Exception], message: str, change: dict[str, Any]
) -> None:
    with pytest.raises(error) as caught:
        bench.prepare(**change)
    assert str(caught.value) == message
    assert not (bench.root / "prepared").exists()


def test_faults_in_tokenizers(bench: PreparedFiles) -> None:
    file = bench.root / "files" / "words" / "tokenizer.json"
    with pytest.raises(ConfigError) as caught:
        bench.prepare(tokenizer=word_tokenizer(("[UNK]",)))
    assert str(caught.value) == (
        f"{file}: the tokenizer has no pad token; allowed: one of [PAD], <pad>, <|pad|>, <|padding|>"
    )
    with pytest.raises(ConfigError) as caught:
        bench.prepare(tokenizer=word_tokenizer(("[PAD]", "[UNK]", *(f"[{i}]" for i in range(9)))))
    assert str(caught.value) == (
        f"{file}: the tokenizer has 41 tokens; allowed: up to {BERT['vocab_size']}, "
        "the vocab_size of model card 'words'"
    )
    with pytest.raises(IntegrityError, match=rf"^{file}: not a tokenizer \("):
        bench.prepare(tokenizer="[]")
    with pytest.raises(IntegrityError) as broken:
        bench.prepare([{"text": "." * n, "label": "a"} for n in range(1, 30)], tokenizer=empty_tokenizer())
    assert str(broken.value) == "no token is left of the text '..'"


def empty_tokenizer() -> str:
    """One that drops punctuation and adds nothing."""
    tokenizer = json.loads(word_tokenizer(("[PAD]", "[UNK]")))
    tokenizer["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "[^a-z0-9]+"},
        "behavior": "Removed",
        "invert": False,
    }
    return json.dumps(tokenizer)


def test_committed_smoke_data_is_what_its_page_says() -> None:
    rows = [json.loads(line) for line in (REPOSITORY / "resources/smoke/topics/topics.jsonl").read_text().splitlines()]
    assert len({row["text"] for row in rows}) == len(rows) == 320
    assert all(len(row["text"]) <= 161 and row["title"] for row in rows)
    counts = {label: sum(row["label"] == label for row in rows) for label in data_card("smoke_topics").labels}
    assert set(counts.values()) == {80}
