"""The documents of a prepared text, whatever rows it was cut into."""

from __future__ import annotations

import torch
from safetensors import safe_open
from torch import Tensor

from lowrank.data.batches import Split
from lowrank.errors import IntegrityError


def document_rows(split: Split, max_length: int, pad_id: int, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Each document as a row, cut or padded to `max_length`.

    Args:
        split: of a text.
        max_length: T, tokens of a row.
        pad_id: what fills up short rows.
        limit: only the first so many documents; None is all.

    Returns:
        input_ids (documents, T) int64 and which of them are tokens of the text, (documents, T) bool.

    Raises:
        IntegrityError: the split holds no documents.
    """
    with safe_open(split.file, framework="pt") as arrays:
        if "documents" not in arrays.keys():  # noqa: SIM118
            raise IntegrityError(f"{split.file}: holds no documents, as a prepared text does")
        starts: Tensor = arrays.get_tensor("documents")
    starts = starts if limit is None else starts[: limit + 1]
    columns = torch.arange(max_length)
    real = columns < starts.diff()[:, None]
    rows = torch.full(real.shape, pad_id)
    rows[real] = split.tokens[(starts[:-1, None] + columns)[real]].long()
    return rows, real
