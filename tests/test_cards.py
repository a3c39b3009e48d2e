"""Cards: committed ones are whole, pins follow what decides the content, faults are explained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowrank import cards
from lowrank.cards import card_names, data_card, model_card, prepared_id, run_pins, run_spec, tokenizer_card
from lowrank.errors import ConfigError, UnavailableError
from lowrank.files import REPOSITORY
from lowrank.sources import LocalSource
from lowrank.spec import DataSpec, run_id
from tests.card_files import BERT, SHARED, CardFiles, sha256

RUN = {
    "task": "classification",
    "model": {"card": "base"},
    "data": {"card": "rows"},
    "chain": [{"part": "full"}],
    "train": {"lr": 1e-3, "epochs": 1},
}
HUB = {"kind": "hub", "repository": "owner/name", "revision": "0" * 40, "files": {"config.json": "1" * 64}}
ROWS = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]


@pytest.fixture
def card_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CardFiles:
    return CardFiles(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", card_names("data"))
def test_committed_data_card_is_whole(name: str) -> None:
    card = data_card(name)
    assert len(card.pin) >= 40
    if isinstance(card.source, LocalSource):
        assert card.source.folder.is_relative_to(REPOSITORY)
        assert all(card.source.files.values()), "a committed file states its sha256"


@pytest.mark.parametrize("name", card_names("models"))
def test_committed_model_card_is_whole(name: str) -> None:
    card = model_card(name)
    assert len(card.pin) >= 16
    assert "vocab_size" in card.config or "image_size" in card.config


def test_no_two_cards_share_a_name_or_a_title() -> None:
    every = [data_card(name) for name in card_names("data")], [model_card(name) for name in card_names("models")]
    shown = [card.name for kind in every for card in kind] + [card.title for kind in every for card in kind]
    assert len(set(shown)) == len(shown)


def test_reading_cards_imports_neither_torch_nor_transformers() -> None:
    code = "import sys; from lowrank.cards import model_card; model_card('distilbert').pin; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "tokenizers", "huggingface_hub", "numpy"} & set(loaded)


def test_unknown_cards_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^unknown data card 'wiki_topic'; did you mean 'wiki_topics'\? \(allowed: "):
        data_card("wiki_topic")
    with pytest.raises(ConfigError, match=r"^unknown model card 'mini'; did you mean 'minilm'\? \(allowed: "):
        model_card("mini")


def model_fields(**fields: Any) -> dict[str, Any]:
    return {"init": "random", "config": BERT, "source": HUB, **fields}


def data_fields(**fields: Any) -> dict[str, Any]:
    return {"task": "classification", "reader": "jsonl", "labels": ["a", "b"], "source": HUB, **fields}


WHEEL = {"kind": "wheel", "package": "p", "version": "1", "sha256": "2" * 64, "members": ["p/a.txt"]}
COMMIT = "'main' is refused; allowed: a whole commit, 40 hex digits, since a branch or tag may move"


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("models", model_fields(source={**HUB, "revision": "main"}), f"source.hub.revision: {COMMIT}"),
        ("models", model_fields(source={**HUB, "revison": "0"}), "source.hub.revison: unknown key 'revison'; did you"),
        (
            "data",
            data_fields(source={**WHEEL, "members": ["../a.txt"]}),
            "source.wheel.members.0: '../a.txt' leaves its folder; allowed: relative paths without '..'",
        ),
        (
            "data",
            data_fields(source={**WHEEL, "members": ["p/a.txt", "q/a.txt"]}),
            "source.wheel: members ['p/a.txt', 'q/a.txt'] share a last name; allowed: each name once",
        ),
        ("data", data_fields(labels=["a"]), "labels ['a'] are refused; allowed: two or more different names"),
        ("data", data_fields(labels=["a", "a"]), "labels ['a', 'a'] are refused; allowed: two or more different names"),
        ("data", data_fields(task="text"), "labels ['a', 'b'] are refused: task 'text' has none"),
        (
            "data",
            data_fields(source={**WHEEL, "sha256": "0"}),
            "source.wheel.sha256: '0' is refused; allowed: 64 hex digits",
        ),
        (
            "data",
            data_fields(source={**HUB, "repository": "a/b/c"}),
            "source.hub.repository: 'a/b/c' is refused; allowed: owner/name",
        ),
    ],
)
def test_faults_are_explained(card_files: CardFiles, kind: str, fields: dict[str, Any], message: str) -> None:
    file = card_files.write(kind, "x", **fields)
    with pytest.raises(ConfigError) as caught:
        {"data": data_card, "models": model_card}[kind]("x")
    assert str(caught.value).startswith(f"{file}: {message}")


def test_a_card_has_the_name_of_its_file(card_files: CardFiles) -> None:
    file = card_files.write("data", "x", **data_fields())
    moved = file.rename(file.with_name("y.yaml"))
    with pytest.raises(ConfigError) as caught:
        data_card("y")
    assert str(caught.value) == f"{moved}: name 'x' is not the file's name; allowed: y"


@pytest.mark.parametrize(
    "change", [{"reader": "parquet"}, {"text": "body"}, {"labels": ["b", "a"]}, {"left_out": ["c"]}]
)
def test_pin_of_data_follows_how_it_is_read(card_files: CardFiles, change: dict[str, Any]) -> None:
    before = card_files.data("x", ROWS).pin
    assert card_files.data("x", ROWS).pin == before
    assert card_files.data("x", ROWS, **change).pin != before


def test_pin_follows_the_bytes_and_not_the_prose(card_files: CardFiles) -> None:
    before = card_files.data("x", ROWS).pin
    assert card_files.data("x", ROWS, title="Other", facts="Other.").pin == before
    assert card_files.data("x", ROWS[:1]).pin != before


@pytest.mark.parametrize("source", [HUB, WHEEL])
def test_pin_of_a_published_source_names_it(card_files: CardFiles, source: dict[str, Any]) -> None:
    card_files.write("data", "x", **data_fields(source=source))
    assert data_card("x").pin.startswith(source.get("revision") or source["sha256"])


def test_local_files_that_are_missing_or_too_large_to_hash(
    card_files: CardFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_files.data("x", ROWS)
    assert isinstance(card.source, LocalSource)
    file = card.source.folder / "rows.jsonl"
    monkeypatch.setattr(cards, "HASHED_WHILE_PLANNING_BYTES", 10)
    with pytest.raises(ConfigError) as caught:
        _ = card.pin
    size = file.stat().st_size
    assert str(caught.value) == (
        f"card 'x': {file} is {size} bytes and has no sha256 in the card; allowed without: up to 10 bytes"
    )
    file.unlink()
    with pytest.raises(UnavailableError) as missing:
        _ = card.pin
    assert str(missing.value) == f"card 'x': no file {file}; put it there, or correct source.path in the card"


def test_a_trained_card_is_named_by_its_run(card_files: CardFiles) -> None:
    base, data = card_files.model("base"), card_files.data("rows", ROWS)
    card_files.write("models", "x", **model_fields(init="pretrained", source={"kind": "trained", "run": RUN}))
    card = model_card("x")
    assert card.pin == run_id(run_spec(card), run_pins(base, data)) + "-pretrained"
    before = card.pin
    card_files.data("rows", ROWS[:1])
    assert model_card("x").pin != before


def test_a_trained_card_needs_a_random_base(card_files: CardFiles) -> None:
    card_files.data("rows", ROWS)
    base = card_files.model("base", init="pretrained")
    card_files.write("models", "x", **model_fields(source={"kind": "trained", "run": RUN}))
    with pytest.raises(ConfigError) as caught:
        run_spec(model_card("x"))
    assert str(caught.value) == (
        "model card 'x': source.run starts from 'base', which is pretrained; "
        "allowed: a random base, since only such a run saves the whole model"
    )
    with pytest.raises(ConfigError, match=r"^model card 'base' has a local source; allowed here: trained$"):
        run_spec(base)


def test_a_card_cannot_depend_on_itself(card_files: CardFiles) -> None:
    card_files.data("rows", ROWS)
    card_files.write("models", "base", **model_fields(source={"kind": "trained", "run": RUN}))
    with pytest.raises(ConfigError, match=r"^model card 'base' depends on itself: base -> base$"):
        _ = model_card("base").pin
    card_files.model("x", tokenizer="y")
    card_files.model("y", tokenizer="x")
    with pytest.raises(ConfigError, match=r"^model card 'x' depends on itself: x -> y -> x$"):
        tokenizer_card(model_card("x"))


def test_models_that_share_a_tokenizer_share_prepared_data(card_files: CardFiles) -> None:
    data, spec = card_files.data("rows", ROWS), DataSpec(card="rows")
    words = card_files.model("words", {"tokenizer.json": "{}"})
    other = card_files.model("other", tokenizer="words", config={**BERT, "hidden_size": 8})
    assert prepared_id(spec, other, data) == prepared_id(spec, words, data)
    assert prepared_id(DataSpec(card="rows", max_length=64), words, data) != prepared_id(spec, words, data)


def test_facts_of_distilbert_are_its_config() -> None:
    """The card's numbers, spelled as the file is, have the checksum that the card states for the file."""
    card = model_card("distilbert")
    missing = {"architectures": ["DistilBertForMaskedLM"], "transformers_version": "4.10.0.dev0"}
    text = json.dumps(dict(sorted({**card.config, **missing}.items())), indent=2) + "\n"
    assert card.source.kind == "hub"
    assert sha256(text.encode()) == card.source.files["config.json"]


def test_shared_fields_are_all_that_a_card_must_say(card_files: CardFiles) -> None:
    for key in SHARED:
        file = card_files.write("data", "x", **data_fields())
        text = {name: value for name, value in yaml.safe_load(file.read_text()).items() if name != key}
        file.write_text(yaml.safe_dump(text))
        with pytest.raises(ConfigError) as caught:
            data_card("x")
        assert str(caught.value) == f"{file}: {key}: missing, and it has no default"
