"""Writes prepared images: splits as uint8 arrays that training maps into memory. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.cards import DataCard
from lowrank.data.image_readers import read_images
from lowrank.data.rows import Row
from lowrank.data.splits import repeats_across, split_rows
from lowrank.errors import ConfigError
from lowrank.spec import DataSpec

_TYPES: dict[str, Any] = {"U8": np.uint8, "I64": np.int64}


def write_images(card: DataCard, files: Path, spec: DataSpec, folder: Path) -> dict[str, Any]:
    """Writes the three splits, each `images` (rows, channels, H, W) uint8 and `labels` (rows,) int64.

    The files are read twice, first to divide the images and then to copy them, so that only one image at a
    time is held. Which image goes where depends on the SHA-256 of its pixels, as that of a text does.

    Returns:
        What the manifest says of the splits.

    Raises:
        ConfigError: rows that do not fit.
        IntegrityError: an image that is not what the card says.
    """
    assert card.image is not None
    rows = [
        Row(hashlib.sha256(pixels.tobytes()).hexdigest(), label, split)
        for pixels, label, split in read_images(card, files)
    ]
    splits = split_rows(rows, spec)
    places = {id(row): (name, place) for name, chosen in splits.items() for place, row in enumerate(chosen)}
    facts, arrays = {}, {}
    for name, chosen in splits.items():
        if len(chosen) < 2:
            raise ConfigError(f"data {card.name!r}: split {name!r} has {len(chosen)} rows; allowed: two or more")
        shapes = {"labels": ("I64", (len(chosen),)), "images": ("U8", (len(chosen), *card.image.shape))}
        arrays[name] = _new_file(folder / f"{name}.safetensors", shapes)
        arrays[name]["labels"][:] = [row.label for row in chosen]
        counts = Counter(card.labels[row.label] for row in chosen if row.label is not None)
        facts[name] = {"rows": len(chosen), "rows_per_label": dict(counts)}
    for row, (pixels, _, _) in zip(rows, read_images(card, files), strict=True):
        if id(row) in places:
            name, place = places[id(row)]
            arrays[name]["images"][place] = pixels
    return {"splits": facts, "repeats_across_splits": repeats_across(splits)}


def _new_file(file: Path, arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, NDArray[Any]]:
    """A safetensors file of zeros, mapped for writing: the library's own writer needs all of it in memory."""
    header: dict[str, Any] = {}
    end = 0
    for name, (kind, shape) in arrays.items():
        start, end = end, end + int(np.prod(shape)) * np.dtype(_TYPES[kind]).itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + end)
    return {
        name: np.memmap(file, _TYPES[kind], "r+", 8 + len(text) + header[name]["data_offsets"][0], shape)
        for name, (kind, shape) in arrays.items()
    }
