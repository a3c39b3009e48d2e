"""Numbers as a reader of a table wants them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

NAMES = {
    "lr": "learning rate",
    "alpha_over_rank": "α/r",
    "budget": "training",
    "arm": "method",
    "num_lora_heads": "heads",
    "merge_every": "merged every",
}


def number(value: Any) -> str:
    """0.25119 -> 0.2512, 3e-5 -> 3e-5, 10.0 -> 10, 3.3333 -> 3.33; a dash where there is no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    size = abs(value)
    if size == 0 or (float(value).is_integer() and size < 1e15):
        return f"{int(value):,}" if size >= 10_000 else str(int(value))
    if size < 1e-4 or size >= 1e7:
        return rate(value)
    return f"{value:.4f}" if size < 1 else f"{value:.3g}" if size < 100 else f"{value:.1f}"


def size(value: Any) -> str:
    """Bytes: 267824136 -> 255.4 MiB; a dash where there is no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    steps = [unit for unit in range(4) if abs(value) >= 1024**unit] or [0]
    unit = steps[-1]
    return f"{value / 1024**unit:.{1 if unit else 0}f} {('B', 'KiB', 'MiB', 'GiB')[unit]}"


def duration(seconds: float | None) -> str:
    """Seconds for a reader: 42 s, 3 min 20 s, 5 h 12 min; a dash where there is no value."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def rate(value: Any) -> str:
    """A learning rate or another number that is swept in logarithms: 0.001 -> 1e-3, 0.25 -> 0.25, 10 -> 10."""
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        return number(value)
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    size = abs(value)
    # 0.03 is a step of a grid in logarithms, 0.0625 a fraction.
    if size >= 1e7 or 0 < size <= 0.01 or (0 < size < 0.1 and "." not in mantissa):
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.7g}"


def label(key: str) -> str:
    """What a column is called in a sentence."""
    return NAMES.get(key, key.replace("_", " "))


def configuration(keys: Mapping[str, Any], titles: Mapping[str, str] | None = None) -> str:
    """A row's keys as a sentence names them: `LoRA, rank 8, alpha 32`; what has no value is left out.

    Args:
        keys: column -> value.
        titles: arm -> its name for a reader.
    """
    words = [
        (titles or {}).get(value, value) if isinstance(value, str) else f"{label(key)} {rate(value)}"
        for key, value in keys.items()
        if value is not None and not (isinstance(value, float) and math.isnan(value)) and value != "main"
    ]
    return ", ".join(words) or "all runs"


def numbers(values: Iterable[Any]) -> str:
    """Several numbers, separated by spaces; a CSV cell that stays a list."""
    return " ".join(rate(value) for value in values)


def snakemake(scale: str, target: str, force: str = "") -> str:
    """The command that makes a target, or with `force`, runs a rule again for it."""
    forced = f" --forcerun {force}" if force else ""
    if scale == "paper":
        return f"snakemake --profile slurm{forced} -- {target}"
    return f"snakemake --cores all{forced} --config scale={scale} -- {target}"
