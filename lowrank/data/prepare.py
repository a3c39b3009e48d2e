"""Prepares data: read, split, tokenise once, write what training maps into memory."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from lowrank.cards import DataCard, ModelCard, data_card, model_card, prepared_id, tokenizer_card
from lowrank.data.fetch import files_of
from lowrank.data.image_writer import write_images
from lowrank.data.questions import TOKENIZER, write_questions
from lowrank.data.readers import read
from lowrank.data.rows import Row
from lowrank.data.splits import repeats_across, split_rows
from lowrank.data.tokens import END_TOKENS, end_to_end, find_token, load_tokenizer, pad_token, tokenise, windows
from lowrank.errors import ConfigError
from lowrank.files import replacing_folder, seal
from lowrank.spec import DataSpec

Arrays = dict[str, NDArray[Any]]


def prepare(spec: DataSpec, model: str, downloads: Path, out: Path) -> Path:
    """Writes the three splits of a dataset, tokenised for a model, and a sealed manifest.

    Classification: `tokens` (int32, all examples end to end), `offsets` (int64, rows + 1), `labels` (int64,
    rows); examples are cut at `max_length`. Text: the documents are packed into one stream, each ended by
    the tokenizer's end token; `offsets` cuts it into rows of `max_length`, `documents` (int64,
    documents + 1) says where each document starts. Without `concatenate` each document, cut at `max_length`,
    is a row. Instructions: prompt, response and end token are a row, cut at `max_length`; `prompts` (int64,
    rows) says how many of its tokens are the prompt. Questions: as their own text, with the answer's index in
    `labels`, and as JSON in `<split>.jsonl`, beside the tokenizer, for the harness that asks them. Images: see
    `lowrank.data.image_writer.write_images`.

    Args:
        spec: which data, how many rows, how long.
        model: name of the model card whose tokenizer and sizes apply.
        downloads: where `fetch` put the cards.
        out: the folder to write, named `lowrank.cards.prepared_id(...)`.

    Returns:
        `out`.

    Raises:
        ConfigError: rows, lengths or tokens that do not fit.
        IntegrityError: a row that is not what the card says.
        UnavailableError: a card that is not fetched.
    """
    card, base = data_card(spec.card), model_card(model)
    if card.task == "image":
        return _prepare_images(card, spec, files_of(card, downloads), out)
    holder = tokenizer_card(base)
    file = files_of(holder, downloads) / "tokenizer.json"
    tokenizer = load_tokenizer(file, base, spec.max_length)
    pad_id = pad_token(tokenizer, file, card.task)
    splits = split_rows(read(card, files_of(card, downloads)), spec)
    with replacing_folder(out) as folder:
        facts = {name: _write_split(name, rows, card, spec, tokenizer, folder) for name, rows in splits.items()}
        _check_ids(facts, base)
        if card.task == "questions":
            shutil.copyfile(file, folder / TOKENIZER)
        manifest = {
            "id": prepared_id(spec, base, card),
            "spec": spec.model_dump(mode="json", exclude_defaults=True),
            "data": {"card": card.name, "title": card.title, "pin": card.pin},
            "tokenizer": {"card": holder.name, "pin": holder.pin},
            "task": card.task,
            "labels": list(card.labels),
            "pad_id": pad_id,
            "vocabulary": tokenizer.get_vocab_size(with_added_tokens=True),
            "special_ids": {t.content: i for i, t in sorted(tokenizer.get_added_tokens_decoder().items()) if t.special},
            "splits": facts,
            "repeats_across_splits": repeats_across(splits),
        }
        seal(folder, manifest)
    return out


def _prepare_images(card: DataCard, spec: DataSpec, files: Path, out: Path) -> Path:
    with replacing_folder(out) as folder:
        manifest = {
            "id": out.name,
            "spec": spec.model_dump(mode="json", exclude_defaults=True),
            "data": {"card": card.name, "title": card.title, "pin": card.pin},
            "task": card.task,
            "labels": list(card.labels),
            "image": card.image.model_dump(mode="json") if card.image else None,
            **write_images(card, files, spec, folder),
        }
        seal(folder, manifest)
    return out


def _write_split(
    name: str, rows: list[Row], card: DataCard, spec: DataSpec, tokenizer: Tokenizer, folder: Path
) -> dict[str, Any]:
    """Writes one split; returns what the manifest says of it."""
    if card.task == "classification":
        arrays, facts = _examples(rows, card, spec, tokenizer)
    elif card.task == "instructions":
        arrays, facts = _instructions(rows, spec, tokenizer)
    elif card.task == "questions":
        arrays, facts = _questions(rows, tokenizer)
        write_questions(rows, folder / f"{name}.jsonl")
    else:
        arrays, facts = _stream(rows, spec, tokenizer)
    count = len(arrays["offsets"]) - 1
    if count < 2 and card.task != "questions":  # which nobody trains on, so that a split may be empty
        raise ConfigError(f"data {card.name!r}: split {name!r} has {count} rows; allowed: two or more")
    save_file(arrays, folder / f"{name}.safetensors")
    longest, highest = int(np.diff(arrays["offsets"]).max(initial=0)), int(arrays["tokens"].max(initial=0))
    return {"rows": count, "tokens": len(arrays["tokens"]), "longest": longest, "highest_token": highest, **facts}


def _check_ids(facts: dict[str, Any], model: ModelCard) -> None:
    """Refuses a token that the model has no embedding for, which only a tokenizer with unused tokens can give."""
    embeddings: Any = model.config["vocab_size"]
    for name, split in facts.items():
        if split["highest_token"] >= embeddings:
            raise ConfigError(
                f"model card {model.name!r}: split {name!r} holds token {split['highest_token']}; allowed: below "
                f"{embeddings}, the vocab_size; so unused_tokens {model.unused_tokens} is wrong"
            )


def _examples(rows: list[Row], card: DataCard, spec: DataSpec, tokenizer: Tokenizer) -> tuple[Arrays, dict[str, Any]]:
    tokenizer.enable_truncation(spec.max_length)
    pieces, cut = [], 0
    for encoding in tokenise(tokenizer, rows):
        pieces.append(encoding.ids)
        cut += bool(encoding.overflowing)
    tokens, offsets = end_to_end(pieces)
    labels = np.array([row.label for row in rows], dtype=np.int64)
    counts = Counter(card.labels[row.label] for row in rows if row.label is not None)
    return {"tokens": tokens, "offsets": offsets, "labels": labels}, {"cut_rows": cut, "rows_per_label": dict(counts)}


def _stream(rows: list[Row], spec: DataSpec, tokenizer: Tokenizer) -> tuple[Arrays, dict[str, Any]]:
    end = find_token(tokenizer, END_TOKENS)
    pieces, cut = [], 0
    for encoding in tokenise(tokenizer, rows):
        ids = encoding.ids if end is None or encoding.ids[-1] == end else [*encoding.ids, end]
        cut += len(ids) > spec.max_length
        pieces.append(ids if spec.concatenate else ids[: spec.max_length])
    tokens, documents = end_to_end(pieces)
    facts = {"documents": len(rows)} if spec.concatenate else {"documents": len(rows), "cut_rows": cut}
    offsets = windows(len(tokens), spec.max_length) if spec.concatenate else documents
    return {"tokens": tokens, "offsets": offsets, "documents": documents.copy()}, facts


def _instructions(rows: list[Row], spec: DataSpec, tokenizer: Tokenizer) -> tuple[Arrays, dict[str, Any]]:
    end = find_token(tokenizer, END_TOKENS)
    pieces, prompts, cut, unanswered = [], [], 0, 0
    asked = tokenise(tokenizer, [replace(row, text=row.prompt) for row in rows])
    whole = tokenise(tokenizer, [replace(row, text=row.prompt + row.text) for row in rows])
    for prompt, both in zip(asked, whole, strict=True):
        ids = both.ids if end is None or both.ids[-1] == end else [*both.ids, end]
        # A tokenizer that ends each text ends the prompt too; that token is not in front of the response.
        length = len(prompt.ids) - (end is not None and prompt.ids[-1] == end)
        cut += len(ids) > spec.max_length
        unanswered += length >= spec.max_length
        pieces.append(ids[: spec.max_length])
        prompts.append(min(length, spec.max_length))
    tokens, offsets = end_to_end(pieces)
    arrays: Arrays = {"tokens": tokens, "offsets": offsets, "prompts": np.array(prompts, dtype=np.int64)}
    return arrays, {"cut_rows": cut, "rows_without_response": unanswered}


def _questions(rows: list[Row], tokenizer: Tokenizer) -> tuple[Arrays, dict[str, Any]]:
    tokens, offsets = end_to_end([encoding.ids for encoding in tokenise(tokenizer, rows)])
    labels = np.array([row.label for row in rows], dtype=np.int64)
    counts = Counter(row.subject for row in rows)
    return {"tokens": tokens, "offsets": offsets, "labels": labels}, {"rows_per_subject": dict(counts)}
