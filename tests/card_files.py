"""Cards of a test's own, in a folder of its own, and the files that they name."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowrank import cards

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "vocab_size": 40,
}
SHARED = {"title": "T", "licence": "MIT", "homepage": "https://example.org", "facts": "Made up."}


class CardFiles:
    """Writes cards where `lowrank.cards` looks, and local files for them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        for kind in ("data", "models"):
            (root / "cards" / kind).mkdir(parents=True)
        monkeypatch.setattr(cards, "CARDS", root / "cards")

    def write(self, kind: str, name: str, **fields: Any) -> Path:
        file = self.root / "cards" / kind / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"name": name, **SHARED, **fields}))
        return file

    def local(self, name: str, files: dict[str, str]) -> dict[str, Any]:
        """A local source that holds these texts."""
        folder = self.root / "files" / name
        for file, text in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")
        return {"kind": "local", "path": str(folder), "files": dict.fromkeys(files)}

    def data(self, name: str, rows: list[dict[str, Any]], file: str = "rows.jsonl", **fields: Any) -> cards.DataCard:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self.write(
            "data",
            name,
            **{
                "task": "classification",
                "reader": "jsonl",
                "labels": ["a", "b"],
                "source": self.local(name, {file: text}),
                **fields,
            },
        )
        return cards.data_card(name)

    def model(self, name: str, files: dict[str, str] | None = None, **fields: Any) -> cards.ModelCard:
        files = {"config.json": json.dumps(fields.get("config", BERT)), **(files or {})}
        self.write("models", name, **{"init": "random", "config": BERT, "source": self.local(name, files), **fields})
        return cards.model_card(name)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder: Path, members: dict[str, str]) -> tuple[Path, str]:
    """A wheel `tiny_data` 1.0 that pip accepts, and its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tiny_data-1.0-py3-none-any.whl"
    info = "tiny_data-1.0.dist-info"
    facts = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in {**members, **facts}.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return file, sha256(file.read_bytes())
