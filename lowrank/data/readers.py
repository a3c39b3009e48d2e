"""Readers: from a card's files to rows. One small function per file format, found by name."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from lowrank.cards import DataCard
from lowrank.data.mmlu import examples
from lowrank.data.prompts import instructions, questions
from lowrank.data.rows import Record, Row
from lowrank.errors import ConfigError, IntegrityError
from lowrank.sources import WheelSource
from lowrank.strict import suggest

SPLITS = ("train", "validation", "test")


def _jsonl(file: Path) -> Iterator[Record]:
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield f"{file.name}:{number}", json.loads(line)
            except ValueError as error:
                raise IntegrityError(f"{file.name}:{number}: not valid JSON ({error})") from None


def _json_mapping(file: Path) -> Iterator[Record]:
    for key, record in json.loads(file.read_text(encoding="utf-8")).items():
        yield f"{file.name}[{key!r}]", record


def _parquet(file: Path) -> Iterator[Record]:
    from pyarrow import parquet  # a third of a second, and only hub data needs it

    number = 0
    for batch in parquet.ParquetFile(file).iter_batches():
        for record in batch.to_pylist():
            yield f"{file.name} row {number}", record
            number += 1


def _wikitext(file: Path) -> Iterator[Record]:
    """Articles, put together from the lines that WikiText's parquet files hold one by one."""
    lines: list[str] = []
    begun = ""
    for place, record in _parquet(file):
        if re.fullmatch(r" = [^=]+ = \n", record["text"]):  # a title; sections have more signs
            if "".join(lines).strip():
                yield begun, {"text": "".join(lines)}
            lines, begun = [], place
        lines.append(record["text"])
    yield begun, {"text": "".join(lines)}


def _film_reviews(file: Path) -> Iterator[Record]:
    """Critics' snippets with a verdict, each once: the table also holds plots, empty cells and repeats."""
    seen = set()
    with bz2.open(file, "rt", encoding="utf-8", newline="") as text:
        for number, record in enumerate(csv.DictReader(text), 1):
            told = record["category"], record["text"]
            if record["category"] != "plot" and record["text"].strip() and told not in seen:
                seen.add(told)
                yield f"{file.name} row {number}", record


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    "jsonl": _jsonl,
    "json_mapping": _json_mapping,
    "parquet": _parquet,
    "wikitext": _wikitext,
    "film_reviews": _film_reviews,
    "mmlu_examples": examples,
}


def read(card: DataCard, folder: Path) -> list[Row]:
    """Every row of a dataset, in the order of its files.

    Raises:
        ConfigError: no such reader.
        IntegrityError: a row without text, or with a label that the card does not name.
    """
    if card.reader not in READERS:
        raise ConfigError(f"data card {card.name!r}: unknown reader {card.reader!r}{suggest(card.reader, READERS)}")
    rows = []
    for name in file_names(card):
        split = _split_of(name)
        for place, record in READERS[card.reader](folder / name):
            if record.get(card.label) in card.left_out:
                continue
            if card.blank == "skipped" and record.get(card.text, "").strip() == "":
                continue
            group = None if card.group is None else str(record[card.group])
            rows += [replace(row, split=card.split or split, group=group) for row in _rows(card, place, record)]
    return rows


def _rows(card: DataCard, place: str, record: Mapping[str, Any]) -> list[Row]:
    if card.task == "instructions":
        return instructions(card, place, record)
    if card.task == "questions":
        return questions(card, place, record)
    return [Row(_text(card, place, record), label_index(card, place, record), None)]


def file_names(card: DataCard) -> list[str]:
    """The files of a card that its reader reads, without their folders in a wheel."""
    if isinstance(card.source, WheelSource):
        return [PurePosixPath(member).name for member in card.source.members]
    return list(card.source.files)


def _split_of(name: str) -> str | None:
    """`data/train-00000-of-00001.parquet`, `en/c4-train.00000-of-01024.json.gz` -> train; `topics.jsonl` -> None."""
    begins = re.split(r"[-_.]", PurePosixPath(name).name)[:2]
    return next((word for word in begins if word in SPLITS), None)


def _text(card: DataCard, place: str, record: Mapping[str, Any]) -> str:
    text = record.get(card.text)
    if not isinstance(text, str) or not text.strip():
        raise IntegrityError(
            f"data card {card.name!r}: {place}: {card.text} is {text!r}; allowed: a text that says something"
        )
    return text


def label_index(card: DataCard, place: str, record: Mapping[str, Any]) -> int | None:
    """The index of a record's label among the card's; None for a text.

    Raises:
        IntegrityError: a label that the card does not name.
    """
    if card.task == "text":
        return None
    label = record.get(card.label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(card.labels):
        return label
    if isinstance(label, str) and label in card.labels:
        return card.labels.index(label)
    raise IntegrityError(f"data card {card.name!r}: {place}: {card.label} is {label!r}{suggest(label, card.labels)}")
