"""Fetching from plain addresses: from a server on this machine, checked against what the publisher states."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lowrank.cards import DataCard, data_card
from lowrank.data.fetch import LOWRANK_FILES, fetch
from lowrank.errors import ConfigError, IntegrityError, UnavailableError
from lowrank.files import check_seal
from tests.card_files import CardFiles

CONTENT = b"some,pixels\n" * 1000
SUMS = {kind: f"{kind}:{hashlib.new(kind, CONTENT).hexdigest()}" for kind in ("md5", "sha256")}


class Server(http.server.BaseHTTPRequestHandler):
    """Answers /rows.csv, and /cut.csv with less than it promises."""

    def do_GET(self) -> None:
        if self.path not in ("/rows.csv", "/cut.csv"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/rows.csv" else CONTENT[:50])

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def card_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CardFiles:
    monkeypatch.delenv(LOWRANK_FILES, raising=False)
    return CardFiles(tmp_path, monkeypatch)


def url_card(card_files: CardFiles, url: str, checksum: str = SUMS["md5"]) -> DataCard:
    source = {"kind": "url", "files": {"rows.csv": {"url": url, "checksum": checksum}}}
    card_files.write("data", "x", task="classification", reader="jsonl", labels=["a", "b"], source=source)
    return data_card("x")


@pytest.mark.parametrize("kind", SUMS)
def test_a_file_comes_from_its_address(card_files: CardFiles, tmp_path: Path, address: str, kind: str) -> None:
    card = url_card(card_files, f"{address}/rows.csv", SUMS[kind])
    folder = fetch(card, tmp_path / "downloads")
    assert (folder / "rows.csv").read_bytes() == CONTENT
    assert check_seal(folder)["origin"] == f"{address}/rows.csv"
    moved = url_card(card_files, "https://elsewhere.org/rows.csv", SUMS[kind])
    assert moved.pin == card.pin, "the bytes are the identity, not the address"
    assert fetch(moved, tmp_path / "downloads") == folder


def test_a_file_that_was_carried_over_is_taken_and_checked(
    card_files: CardFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOWRANK_FILES, str(tmp_path))
    (tmp_path / "rows.csv").write_bytes(CONTENT)
    card = url_card(card_files, "https://nowhere.invalid/rows.csv")
    assert check_seal(fetch(card, tmp_path / "downloads"))["origin"] == LOWRANK_FILES


@pytest.mark.parametrize("kind", SUMS)
def test_other_bytes_are_refused(card_files: CardFiles, tmp_path: Path, address: str, kind: str) -> None:
    wrong = f"{kind}:{'0' * len(SUMS[kind].split(':')[1])}"
    with pytest.raises(IntegrityError) as caught:
        fetch(url_card(card_files, f"{address}/rows.csv", wrong), tmp_path / "downloads")
    assert str(caught.value) == (
        f"card 'x': {kind} of rows.csv is {SUMS[kind].split(':')[1]}, the card says {wrong.split(':')[1]}"
    )
    assert not (tmp_path / "downloads" / "x").exists()


@pytest.mark.parametrize("name", ["missing.csv", "cut.csv"])
def test_an_address_that_does_not_answer_in_full(
    card_files: CardFiles, tmp_path: Path, address: str, name: str
) -> None:
    with pytest.raises(UnavailableError) as caught:
        fetch(url_card(card_files, f"{address}/{name}"), tmp_path / "downloads")
    assert f"{address}/{name} cannot be fetched (" in str(caught.value)
    assert "put rows.csv into a folder and set LOWRANK_FILES to that folder" in str(caught.value)
    assert not (tmp_path / "downloads" / "x").exists()


@pytest.mark.parametrize(
    ("url", "checksum", "fault"),
    [
        ("ftp://x.org/a", SUMS["md5"], "'ftp://x.org/a' is refused; allowed: an address that starts with https://"),
        ("https://x.org/a", "md5:12", "'md5:12' is refused; allowed: sha256: or md5:"),
        ("https://x.org/a", "sha1:" + "0" * 40, "is refused; allowed: sha256: or md5:"),
    ],
)
def test_addresses_and_sums_are_checked(card_files: CardFiles, url: str, checksum: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        url_card(card_files, url, checksum)
    assert fault in str(caught.value)
