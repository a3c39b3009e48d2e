"""The course of a run as a table."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

COLUMNS = ("step", "epoch", "lr", "train_loss", "val_loss", "val_accuracy")


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Writes `history.parquet`: one row per step; null where nothing was measured."""
    import pyarrow
    import pyarrow.parquet

    columns = [_column([row.get(name) for row in history], whole=name == "step") for name in COLUMNS]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=list(COLUMNS)), path)


def _column(values: list[Any], whole: bool) -> Any:
    """An Arrow array from its buffers; pyarrow.array would import pandas, only to ask whether this is a Series."""
    import pyarrow

    valid = bytearray(-(-len(values) // 8))
    for index, value in enumerate(values):
        valid[index // 8] |= (value is not None) << index % 8
    kind, letter = (pyarrow.int64(), "q") if whole else (pyarrow.float64(), "d")
    data = array(letter, [0 if value is None else value for value in values])
    buffers = [pyarrow.py_buffer(bytes(valid)), pyarrow.py_buffer(data)]
    return pyarrow.Array.from_buffers(kind, len(values), buffers)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_history` wrote."""
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows
