"""Fetching from the hub, from local folders and from the pipeline's own runs. No network is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.numpy import save_file

from lowrank.cards import ModelCard, model_card, run_pins, run_spec
from lowrank.data.fetch import LOWRANK_FILES, fetch
from lowrank.errors import IntegrityError, UnavailableError
from lowrank.files import check_seal, seal
from lowrank.spec import run_id
from tests.card_files import BERT, CardFiles, sha256

WRONG = "0" * 64
CONFIG = json.dumps(BERT)
FILES = {"config.json": sha256(CONFIG.encode())}
HUB = {"kind": "hub", "repository": "owner/tiny", "revision": "a" * 40, "files": FILES}


@pytest.fixture
def card_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CardFiles:
    monkeypatch.delenv(LOWRANK_FILES, raising=False)
    return CardFiles(tmp_path, monkeypatch)


def hub_card(card_files: CardFiles, **changes: Any) -> ModelCard:
    card_files.write("models", "x", init="random", config=BERT, source={**HUB, **changes})
    return model_card("x")


def test_hub_files_come_at_the_revision(card_files: CardFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(repository: str, *, local_dir: Path, **options: Any) -> None:
        asked.update(options, repository=repository)
        (local_dir / ".cache").mkdir()
        (local_dir / ".cache" / "notes").write_text("bookkeeping")
        (local_dir / "config.json").write_text(CONFIG)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    folder = fetch(hub_card(card_files), tmp_path / "downloads")
    assert asked == {
        "repository": "owner/tiny", "repo_type": "model", "revision": "a" * 40, "allow_patterns": ["config.json"],
    }  # fmt: skip
    assert list(check_seal(folder)["files"]) == ["config.json"]


def test_a_hub_card_without_a_revision_says_how_to_state_it(card_files: CardFiles, tmp_path: Path) -> None:
    with pytest.raises(
        UnavailableError, match=r"states no revision of owner/tiny.*owner/tiny/commits/main shows first"
    ):
        fetch(hub_card(card_files, revision="unstated"), tmp_path / "downloads")
    assert not (tmp_path / "downloads" / "x").exists()


def test_hub_files_that_differ_or_are_missing(
    card_files: CardFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "carried" / "owner--tiny"
    snapshot.mkdir(parents=True)
    monkeypatch.setenv(LOWRANK_FILES, str(tmp_path / "carried"))
    card = hub_card(card_files)
    with pytest.raises(IntegrityError) as caught:
        fetch(card, tmp_path / "downloads")
    assert str(caught.value) == f"card 'x': owner/tiny at {'a' * 40} has no file config.json"
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(IntegrityError) as caught:
        fetch(card, tmp_path / "downloads")
    expected = FILES["config.json"]
    assert str(caught.value) == f"card 'x': sha256 of config.json is {sha256(b'{}')}, the card says {expected}"
    (snapshot / "config.json").write_text(CONFIG)
    assert check_seal(fetch(card, tmp_path / "downloads"))["origin"] == LOWRANK_FILES


def test_a_commit_alone_is_trusted_from_the_hub_only(
    card_files: CardFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = hub_card(card_files, files={"config.json": None})
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *names, local_dir, **options: (local_dir / "config.json").write_text(CONFIG),
    )
    # The manifest says what to put into the card.
    assert check_seal(fetch(card, tmp_path / "downloads"))["files"] == FILES
    (tmp_path / "carried" / "owner--tiny").mkdir(parents=True)
    (tmp_path / "carried" / "owner--tiny" / "config.json").write_text(CONFIG)
    monkeypatch.setenv(LOWRANK_FILES, str(tmp_path / "carried"))
    with pytest.raises(IntegrityError, match="the card states no sha256 to check it with; fetch it once"):
        fetch(card, tmp_path / "elsewhere")


def test_an_unreachable_hub_says_what_to_do(
    card_files: CardFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("name not known\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UnavailableError) as caught:
        fetch(hub_card(card_files), tmp_path / "downloads")
    assert str(caught.value) == (
        f"card 'x': owner/tiny at {'a' * 40} cannot be fetched from the hub (name not known); "
        "where there is no network, put its files into owner--tiny/ of a folder and set LOWRANK_FILES to that folder"
    )


def test_local_files_stay_where_they_are_and_are_checked(card_files: CardFiles, tmp_path: Path) -> None:
    card = card_files.data("x", [{"text": "one", "label": "a"}])
    assert card.source.kind == "local"
    file = card.source.folder / "rows.jsonl"
    assert fetch(card, tmp_path / "downloads") == file.parent
    assert check_seal(tmp_path / "downloads" / "x")["files"] == {}
    source = {"kind": "local", "path": str(file.parent), "files": {"rows.jsonl": WRONG}}
    card = card_files.data("x", [{"text": "one", "label": "a"}], source=source)
    with pytest.raises(IntegrityError) as caught:
        fetch(card, tmp_path / "downloads")
    assert str(caught.value) == f"card 'x': sha256 of {file} is {sha256(file.read_bytes())}, the card says {WRONG}"
    file.unlink()
    with pytest.raises(UnavailableError) as missing:
        fetch(card, tmp_path / "downloads")
    assert str(missing.value) == f"card 'x': no file {file}"


def test_trained_card_takes_the_weights_of_its_run(card_files: CardFiles, tmp_path: Path) -> None:
    base, data = card_files.model("base"), card_files.data("rows", [{"text": "one", "label": "a"}])
    run = {
        "task": "classification",
        "model": {"card": "base", "layers": 2},
        "data": {"card": "rows"},
        "chain": [{"part": "full"}],
        "train": {"lr": 1e-3, "epochs": 1},
    }
    card_files.write(
        "models", "x", init="pretrained", config={"vocab_size": 40}, source={"kind": "trained", "run": run}
    )
    card, runs = model_card("x"), tmp_path / "runs"
    name = run_id(run_spec(card), run_pins(base, data))
    with pytest.raises(UnavailableError) as caught:
        fetch(card, tmp_path / "downloads", runs)
    assert str(caught.value) == f"card 'x': run {name} is not in {runs}; train it first"
    (runs / name).mkdir(parents=True)
    seal(runs / name, {})
    with pytest.raises(UnavailableError) as caught:
        fetch(card, tmp_path / "downloads", runs)
    assert str(caught.value) == f"card 'x': run {name} kept no weights; `lowrank rerun {name}` trains it again"
    save_file({}, runs / name / "weights.safetensors")
    seal(runs / name, {})
    folder = fetch(card, tmp_path / "downloads", runs)
    assert json.loads((folder / "config.json").read_text()) == {**BERT, "num_hidden_layers": 2}
    assert check_seal(folder)["origin"] == name
