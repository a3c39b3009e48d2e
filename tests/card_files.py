"""Cards of a test's own, in a folder of its own, and the files that they name."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lowrank import cards
from lowrank.data.fetch import fetch
from lowrank.data.prepare import prepare
from lowrank.spec import DataSpec

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


WORDS = [f"w{index}" for index in range(30)]
ROWS = [{"text": f"{WORDS[i % 30]} {WORDS[i * 7 % 30]} {i}", "label": "ab"[i % 2]} for i in range(40)]


def word_tokenizer(special: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")) -> str:
    """A tokenizer of whole words, as `tokenizer.json`; it carries padding and truncation, as published ones do."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if "[CLS]" in special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[(name, special.index(name)) for name in ("[CLS]", "[SEP]")]
        )
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(4)
    return str(tokenizer.to_str())


class PreparedFiles(CardFiles):
    """Cards, and data prepared from them."""

    def prepare(self, rows: list[dict[str, Any]] = ROWS, tokenizer: str | None = None, **options: Any) -> Path:
        """Prepares rows for a small model; `options` of the spec and, as `card`, of the data card."""
        fields = options.pop("card", {})
        self.data("rows", rows, **fields)
        self.model("words", {"tokenizer.json": tokenizer or word_tokenizer()})
        for card in (cards.data_card("rows"), cards.model_card("words")):
            fetch(card, self.root / "downloads")
        spec = DataSpec(card="rows", **{"max_length": 8, **options})
        return prepare(spec, "words", self.root / "downloads", self.root / "prepared")


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
