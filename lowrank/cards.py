"""Cards: what each dataset and model is, where it comes from, and the identity that enters a run's hash.

A card is one real thing with one source (`resources/cards/{data,models}/<name>.yaml`). This module
reads cards without torch, transformers or the network, since the workflow's plan needs their pins.
"""

from __future__ import annotations

import hashlib
from typing import Literal, TypeVar

from pydantic import Field, model_validator

from lowrank.data_size import DataSize
from lowrank.errors import ConfigError, UnavailableError
from lowrank.files import REPOSITORY, canonical_json, sha256_file
from lowrank.images import ImageFormat
from lowrank.sources import AnySource, Files, FileSource, HubSource, LocalSource, TrainedSource, UrlSource, WheelSource
from lowrank.spec import DataSpec, RunSpec, data_id, run_id
from lowrank.strict import Name, NonNegativeInt, Strict, parse, suggest
from lowrank.templates import Template
from lowrank.yaml_files import record_once

CARDS = REPOSITORY / "resources" / "cards"

HASHED_WHILE_PLANNING_BYTES = 64 * 2**20
"""Local files up to this size are hashed to know their pin; a larger one states its sha256 in the card."""


class _Card(Strict):
    name: Name
    title: str = Field(min_length=1)
    """The real name, as column heads show it."""
    licence: str = Field(min_length=1)
    homepage: str
    facts: str
    """Rows, sizes, and how we know: free text for the reader."""


class DataCard(_Card):
    """One dataset."""

    task: Literal["classification", "text", "image", "instructions", "questions"]
    source: FileSource
    reader: Name
    """A function of `lowrank.data.readers`, or of `lowrank.data.image_readers`."""
    text: str = "text"
    """The field that holds the text."""
    label: str = "label"
    """The field that holds the label, a name or an index into `labels`; of a text, what `left_out` looks at."""
    labels: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Labels whose rows are not read."""
    blank: Literal["refused", "skipped"] = "refused"
    """Rows whose text is empty or white space; texts that are stored line by line have many."""
    group: str | None = None
    """The field whose rows stay in one split: a film's reviews are no test of a model that was trained on others."""
    image: ImageFormat | None = None
    """Size and normalisation, for task image."""
    templates: tuple[Template, ...] = ()
    """Of instructions, and of questions that are made from labels: prompts over the fields of a row."""
    use: Literal["first", "each"] = "first"
    """Which templates make a row: the first whose prompt has all its fields, or each that has all of them."""
    size: DataSize = DataSize()
    split: Literal["test"] | None = None
    """Where every row belongs, in data that is only asked about; None where files or fractions decide."""

    @model_validator(mode="after")
    def _labels_fit_task(self) -> DataCard:
        if self.task in ("classification", "image") and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError(f"labels {list(self.labels)} are refused; allowed: two or more different names")
        if self.task in ("text", "instructions") and self.labels:
            raise ValueError(f"labels {list(self.labels)} are refused: task {self.task!r} has none")
        if (self.task == "instructions") != any(template.response for template in self.templates):
            raise ValueError("templates with a response belong to task 'instructions', which needs at least one")
        if self.task == "questions" and bool(self.templates) != bool(self.labels):
            raise ValueError("questions made from labels need both: labels, and a template for the question")
        if (self.task == "image") != (self.image is not None):
            raise ValueError(
                f"task {self.task!r} and image {self.image!r} do not go together; allowed: image data with both"
            )
        return self

    @property
    def pin(self) -> str:
        """Identity of the rows: the source, and 8 hex digits over how it is read."""
        reading = self.model_dump(mode="json", include={"task", "reader", "text", "label", "labels", "left_out"})
        # These came after the others, whose pins they leave alone.
        later = {"blank", "group", "image", "templates", "use", "split"}
        reading |= self.model_dump(mode="json", include=later, exclude_defaults=True)
        return f"{_source_pin(self, self.source)}-{_digest(reading, 8)}"


class ModelCard(_Card):
    """One base model, or one architecture that starts from random weights."""

    init: Literal["pretrained", "random"]
    source: AnySource
    config: dict[str, int | float | str | bool | None] = Field(min_length=1)
    """Facts of `config.json`, known before anything is fetched; checked against the file."""
    tokenizer: Name | None = None
    """The model card whose `tokenizer.json` is used; None is this one's own."""
    unused_tokens: NonNegativeInt = 0
    """Tokens at the end of the tokenizer's vocabulary that no text holds and the model has no embedding for."""

    @property
    def pin(self) -> str:
        """Identity of the weights and of the tokenizer that belongs to them."""
        return _model_pin(self, ())


Card = DataCard | ModelCard
_Kind = TypeVar("_Kind", DataCard, ModelCard)


def data_card(name: str) -> DataCard:
    """The dataset card of that name.

    Raises:
        ConfigError: no such card, or a fault in it.
    """
    return _read(DataCard, "data", name)


def model_card(name: str) -> ModelCard:
    """The model card of that name.

    Raises:
        ConfigError: no such card, or a fault in it.
    """
    return _read(ModelCard, "models", name)


def card_names(kind: Literal["data", "models"]) -> list[str]:
    """Every card of a kind, in alphabetical order."""
    return sorted(file.stem for file in (CARDS / kind).glob("*.yaml"))


def run_spec(card: ModelCard) -> RunSpec:
    """The run whose weights a `trained` card holds.

    Raises:
        ConfigError: the card is not trained, or its run does not start from a random base.
    """
    if not isinstance(card.source, TrainedSource):
        raise ConfigError(f"model card {card.name!r} has a {card.source.kind} source; allowed here: trained")
    spec = parse(RunSpec, card.source.run, f"model card {card.name!r}: source.run")
    base = model_card(spec.model.card)
    if base.init != "random":
        raise ConfigError(
            f"model card {card.name!r}: source.run starts from {base.name!r}, which is {base.init}; "
            "allowed: a random base, since only such a run saves the whole model"
        )
    return spec


def run_pins(model: ModelCard, data: DataCard) -> dict[str, str]:
    """The identities that enter a run's hash, for `lowrank.spec.run_id`."""
    return _run_pins(model, data, ())


def prepared_id(spec: DataSpec, model: ModelCard, data: DataCard) -> str:
    """The name of prepared data: rows and tokenizer decide, so models that share a tokenizer share it.

    Images are prepared for any model.
    """
    if data.task == "image":
        return data_id(spec, {"data": f"{data.name}@{data.pin}"})
    tokenizer = tokenizer_card(model)
    pins = {"tokenizer": f"{tokenizer.name}@{tokenizer.pin}", "data": f"{data.name}@{data.pin}"}
    return data_id(spec, pins)


def prepared_from(model: ModelCard, data: DataCard) -> list[Card]:
    """The cards that preparing data reads: the model's, whose sizes apply, its tokenizer's, and the data's."""
    texts = {} if data.task == "image" else {card.name: card for card in (model, tokenizer_card(model))}
    return [*texts.values(), data]


def tokenizer_card(card: ModelCard) -> ModelCard:
    """The card whose files hold the tokenizer of `card`: itself, the one it names, or its run's base."""
    return _tokenizer_card(card, ())


def _read(record: type[_Kind], folder: Literal["data", "models"], name: str) -> _Kind:
    file = CARDS / folder / f"{name}.yaml"
    if not file.is_file():
        raise ConfigError(f"unknown {folder.removesuffix('s')} card {name!r}{suggest(name, card_names(folder))}")
    card: _Kind = record_once(record, file, file.stat().st_mtime_ns, str(file))
    if card.name != name:
        raise ConfigError(f"{file}: name {card.name!r} is not the file's name; allowed: {name}")
    return card


def _run_pins(model: ModelCard, data: DataCard, trail: tuple[str, ...]) -> dict[str, str]:
    return {"model": f"{model.name}@{_model_pin(model, trail)}", "data": f"{data.name}@{data.pin}"}


def _model_pin(card: ModelCard, trail: tuple[str, ...]) -> str:
    if isinstance(card.source, TrainedSource):
        spec = run_spec(card)
        base = model_card(spec.model.card)
        own = run_id(spec, _run_pins(base, data_card(spec.data.card), _longer(trail, card)))
    else:
        own = _source_pin(card, card.source)
    if card.tokenizer is None:
        return f"{own}-{card.init}"
    return f"{own}-{card.init}-{_digest(_model_pin(model_card(card.tokenizer), _longer(trail, card)), 8)}"


def _tokenizer_card(card: ModelCard, trail: tuple[str, ...]) -> ModelCard:
    if card.tokenizer is not None:
        return _tokenizer_card(model_card(card.tokenizer), _longer(trail, card))
    if isinstance(card.source, TrainedSource):
        return _tokenizer_card(model_card(run_spec(card).model.card), _longer(trail, card))
    return card


def _longer(trail: tuple[str, ...], card: ModelCard) -> tuple[str, ...]:
    if card.name in trail:
        raise ConfigError(f"model card {card.name!r} depends on itself: {' -> '.join([*trail, card.name])}")
    return (*trail, card.name)


def _source_pin(card: Card, source: Files) -> str:
    if isinstance(source, HubSource):
        return f"{source.revision}-{_digest(source.files, 8)}"
    if isinstance(source, WheelSource):
        return f"{source.sha256}-{_digest(sorted(source.members), 8)}"
    if isinstance(source, UrlSource):  # where it lies may change, its bytes may not
        return _digest({name: file.checksum for name, file in source.files.items()})
    return _digest({name: stated or _local_sha256(card, source, name) for name, stated in source.files.items()})


def _local_sha256(card: Card, source: LocalSource, name: str) -> str:
    file = source.folder / name
    if not file.is_file():
        raise UnavailableError(f"card {card.name!r}: no file {file}; put it there, or correct source.path in the card")
    size = file.stat().st_size
    if size > HASHED_WHILE_PLANNING_BYTES:
        raise ConfigError(
            f"card {card.name!r}: {file} is {size} bytes and has no sha256 in the card; "
            f"allowed without: up to {HASHED_WHILE_PLANNING_BYTES} bytes"
        )
    return sha256_file(file)


def _digest(value: object, digits: int = 64) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:digits]
