"""From texts to token ids, with the tokenizers library alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from lowrank.cards import ModelCard
from lowrank.data.rows import Row
from lowrank.errors import ConfigError, IntegrityError

PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]")

CHUNK_ROWS = 1000
"""Texts tokenised at a time: enough to use every thread, few enough to bound memory."""


def load_tokenizer(file: Path, model: ModelCard, max_length: int) -> Tokenizer:
    """Reads `tokenizer.json` and checks that the model can hold its tokens.

    Raises:
        IntegrityError: missing or unreadable.
        ConfigError: more tokens than embeddings, or more positions asked for than the model has.
    """
    if not file.is_file():
        raise IntegrityError(f"{file}: no such file")
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception
        raise IntegrityError(f"{file}: not a tokenizer ({error})") from None
    # Files carry the padding and truncation of whoever saved them.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    embeddings = model.config.get("vocab_size")
    size = tokenizer.get_vocab_size(with_added_tokens=True) - model.unused_tokens
    if not isinstance(embeddings, int) or size > embeddings:
        raise ConfigError(
            f"{file}: the tokenizer has {size} tokens; allowed: up to {embeddings}, "
            f"the vocab_size of model card {model.name!r}"
        )
    positions = model.config.get("max_position_embeddings", model.config.get("n_positions"))
    if isinstance(positions, int) and max_length > positions:
        raise ConfigError(
            f"max_length is {max_length}; allowed: up to {positions}, the positions of model card {model.name!r}"
        )
    return tokenizer


def find_token(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    """The id of the first of the names that the tokenizer knows, or None."""
    ids = (tokenizer.token_to_id(name) for name in names)
    return next((token for token in ids if token is not None), None)


def pad_token(tokenizer: Tokenizer, file: Path, task: str) -> int:
    """The id that fills up short rows.

    A packed text needs none but in its last row, where attention and labels leave it out; the end token
    serves there, as is usual for GPT-2.

    Raises:
        ConfigError: the tokenizer has no pad token.
    """
    names = PAD_TOKENS if task == "classification" else PAD_TOKENS + END_TOKENS
    pad = find_token(tokenizer, names)
    if pad is None:
        raise ConfigError(f"{file}: the tokenizer has no pad token; allowed: one of {', '.join(names)}")
    return pad


def tokenise(tokenizer: Tokenizer, rows: Sequence[Row]) -> Iterator[Encoding]:
    """The encoding of each row, in order.

    Raises:
        IntegrityError: a text of which no token is left.
    """
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        for row, encoding in zip(chunk, tokenizer.encode_batch_fast([row.text for row in chunk]), strict=True):
            if not encoding.ids:
                raise IntegrityError(f"no token is left of the text {row.text[:80]!r}")
            yield encoding


def end_to_end(pieces: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Ragged rows as one array: tokens (sum of lengths,) int32, offsets (rows + 1,) int64."""
    offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
    np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
    tokens = np.empty(offsets[-1], dtype=np.int32)
    for piece, start in zip(pieces, offsets[:-1], strict=True):
        tokens[start : start + len(piece)] = piece
    return tokens, offsets


def windows(tokens: int, length: int) -> NDArray[np.int64]:
    """Where a stream is cut into rows of `length` tokens: offsets (rows + 1,) int64.

    The last row is shorter. A last row of one token is dropped, since nothing comes before it.
    """
    offsets = np.append(np.arange(0, tokens, length, dtype=np.int64), np.int64(tokens))
    return offsets[:-1] if len(offsets) > 2 and offsets[-1] - offsets[-2] == 1 else offsets
