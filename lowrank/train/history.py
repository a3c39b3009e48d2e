"""The course of a run on disk: a table, and TensorBoard event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLUMNS = ("step", "epoch", "lr", "train_loss", "val_loss", "val_accuracy")
SCALARS = ("lr", "train_loss", "val_loss", "val_accuracy")


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Writes `history.parquet`: one row per step; null where nothing was measured."""
    import pyarrow
    import pyarrow.parquet

    kinds = {"step": pyarrow.int64()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in COLUMNS])
    columns = {name: [row.get(name) for row in history] for name in COLUMNS}
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), path)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_history` wrote."""
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def write_events(folder: Path, history: list[dict[str, Any]]) -> None:
    """Writes the history as TensorBoard scalars, under the columns' own names."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    for row in history:
        values = [Summary.Value(tag=name, simple_value=row[name]) for name in SCALARS if row.get(name) is not None]
        writer.add_event(Event(step=row["step"], summary=Summary(value=values)))
    writer.close()
