"""The course of a run as a TensorBoard event file."""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import Any

SCALARS = ("lr", "train_loss", "val_loss", "val_accuracy")

FILE = "events.out.tfevents.0"
"""TensorBoard knows its files by the middle of this name; the usual time and host would say nothing here."""


def write_events(folder: Path, history: list[dict[str, Any]]) -> None:
    """Writes the history as TensorBoard scalars, under the columns' own names, over the step.

    The records are framed here: TensorBoard's own writer imports file systems and plugins for a
    quarter of a second, in every job.

    Args:
        folder: made if it is not there.
        history: rows as `lowrank.train.loop.State` keeps them.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("wb") as file:
        file.write(_record(Event(file_version="brain.Event:2").SerializeToString()))
        for row in history:
            values = [Summary.Value(tag=name, simple_value=row[name]) for name in SCALARS if row.get(name) is not None]
            file.write(_record(Event(step=row["step"], summary=Summary(value=values)).SerializeToString()))


def _record(data: bytes) -> bytes:
    """One TFRecord: length, its checksum, data, its checksum; little-endian."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked_crc(length)) + data + struct.pack("<I", _masked_crc(data))


def _masked_crc(data: bytes) -> int:
    """CRC-32C, rotated right by 15 bits, plus a constant.

    Source: TensorFlow, "TFRecord and tf.train.Example", section "TFRecords format details".
    """
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # Castagnoli's polynomial, bits reversed
        table.append(value)
    return tuple(table)
