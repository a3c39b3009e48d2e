"""Readers of images: from a card's files to arrays, one at a time, so that no dataset has to fit into memory."""

from __future__ import annotations

import csv
import gzip
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lowrank.cards import DataCard
from lowrank.data.readers import file_names, label_index
from lowrank.errors import ConfigError, IntegrityError
from lowrank.images import ImageFormat
from lowrank.strict import suggest

Pixels = NDArray[np.uint8]

Record = tuple[str, Pixels, Any, str | None]
"""Where an image stands, for messages; the image as its file has it; its label; the split that its file puts it in."""

NPZ_SPLITS = {"train": "train", "val": "validation", "test": "test"}
"""The names of MedMNIST's arrays, `<split>_images` and `<split>_labels`, and ours."""


def _csv_images(file: Path, image: ImageFormat) -> Iterator[Record]:
    """A row for each image: its pixels from left to right and top to bottom, then its label. May be gzipped."""
    shape = (image.height, image.width) if image.channels == 1 else (image.height, image.width, image.channels)
    try:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open(encoding="utf-8") as text:
            for number, cells in enumerate(csv.reader(text), 1):
                place = f"{file.name}:{number}"
                if len(cells) != np.prod(shape) + 1:
                    raise IntegrityError(f"{place}: {len(cells)} cells; allowed: {np.prod(shape)} pixels and a label")
                try:
                    pixels = np.array(cells[:-1], dtype=np.int64)
                except ValueError as error:
                    raise IntegrityError(f"{place}: a pixel is no whole number ({error})") from None
                if pixels.min() < 0 or pixels.max() > 255:
                    raise IntegrityError(f"{place}: pixels are {pixels.min()} to {pixels.max()}; allowed: 0 to 255")
                yield place, pixels.astype(np.uint8).reshape(shape), cells[-1], None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{file}: not readable ({error})") from None


def _npz_images(file: Path, image: ImageFormat) -> Iterator[Record]:
    """MedMNIST's file: for each split `<split>_images` (N, H, W) or (N, H, W, 3) uint8, `<split>_labels` (N, 1)."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            for theirs, ours in NPZ_SPLITS.items():
                images, labels = f"{theirs}_images.npy", f"{theirs}_labels.npy"
                if not {images, labels} <= names:
                    missing = sorted({images, labels} - names)[0].removesuffix(".npy")
                    raise IntegrityError(f"{file}: has no array {missing!r}; found {', '.join(sorted(names))}")
                with archive.open(labels) as stream:
                    classes = np.concatenate([row.reshape(1, -1) for row in _rows(stream, f"{file.name}[{labels}]")])
                if classes.shape[1] != 1:
                    found = f"{classes.shape[1]} labels for each image"
                    raise IntegrityError(f"{file.name}[{labels}]: {found}; allowed: one, in an array of shape (N, 1)")
                with archive.open(images) as stream:
                    count = 0
                    for count, pixels in enumerate(_rows(stream, f"{file.name}[{images}]"), 1):
                        if count <= len(classes):
                            place = f"{file.name}[{theirs}_images][{count - 1}]"
                            yield place, pixels, int(classes[count - 1, 0]), ours
                if count != len(classes):
                    raise IntegrityError(f"{file.name}: {count} {theirs} images, but {len(classes)} labels")
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{file}: not readable ({error})") from None


def _rows(stream: IO[bytes], place: str) -> Iterator[NDArray[Any]]:
    """The rows of a .npy file one by one; an array of Python objects, which would need pickle, is refused."""
    try:
        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(stream)
    except ValueError as error:
        raise IntegrityError(f"{place}: not an array ({error})") from None
    if dtype.kind not in "ui" or fortran or not shape:
        order = "Fortran order" if fortran else "C order"
        raise IntegrityError(f"{place}: {dtype} of shape {shape} in {order}; allowed: whole numbers in C order")
    size = int(np.prod(shape[1:])) * dtype.itemsize
    for index in range(shape[0]):
        data = stream.read(size)
        if len(data) != size:
            raise IntegrityError(f"{place}: ends in row {index} of {shape[0]}")
        yield np.frombuffer(data, dtype).reshape(shape[1:])


READERS: dict[str, Callable[[Path, ImageFormat], Iterator[Record]]] = {
    "csv_images": _csv_images,
    "npz_images": _npz_images,
}


def read_images(card: DataCard, folder: Path) -> Iterator[tuple[Pixels, int, str | None]]:
    """Every image of a dataset in the order of its files: (channels, H, W) uint8, index of its label, its split.

    Raises:
        ConfigError: no such reader.
        IntegrityError: an image of another shape, or a label that the card does not name; says which.
    """
    if card.reader not in READERS:
        raise ConfigError(f"data card {card.name!r}: unknown reader {card.reader!r}{suggest(card.reader, READERS)}")
    assert card.image is not None  # a card of task 'image' has it
    for name in file_names(card):
        for place, pixels, label, split in READERS[card.reader](folder / name, card.image):
            if label not in card.left_out:
                index = label_index(card, place, {card.label: label})
                assert index is not None
                yield _shaped(pixels, card.image, f"data card {card.name!r}: {place}"), index, split


def _shaped(pixels: Pixels, image: ImageFormat, place: str) -> Pixels:
    """(H, W) or (H, W, channels) as a file has it -> (channels, H, W); grey fills all channels."""
    size = (image.height, image.width)
    if pixels.dtype != np.uint8 or pixels.shape not in (size, (*size, image.channels), (*size, 1)):
        allowed = f"uint8 of shape {size}" + (f" or {(*size, 3)}" if image.channels == 3 else "")
        raise IntegrityError(f"{place}: {pixels.dtype} of shape {pixels.shape}; allowed: {allowed}")
    planes = pixels.reshape(*size, -1).transpose(2, 0, 1)
    return np.ascontiguousarray(np.broadcast_to(planes, image.shape))
