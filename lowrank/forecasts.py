"""What runs hold and compute, each question once: `resources/forecasts.json` keeps the answers of the studies.

A forecast takes seconds, and a large scale asks some hundred of them. Those of the committed studies are committed,
one a line; `python -m lowrank.forecasts` adds what is missing, and with `--all` answers every question anew. A
question that is not in the file is answered when it is asked.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from typing import Any, get_args

from lowrank.asked import Asked
from lowrank.cards import data_card
from lowrank.console import progress
from lowrank.files import REPOSITORY, canonical_json, read_json, write_text
from lowrank.measure.forecast import Forecast, forecast
from lowrank.measure.tally import Work
from lowrank.registry import part
from lowrank.spec import PartOptions, RunSpec
from lowrank.strict import Fraction, parse
from lowrank.train.loop import EVAL_BATCH_SIZE

FILE = REPOSITORY / "resources" / "forecasts.json"

SMALL_FLOPS, SMALL_BYTES = 10**8, 10**6
"""Kernels below both start no sooner than they are done, on any GPU; they are counted together."""

TYPICAL_STEPS = 1000
"""How long a run is taken to be that trains at all: its length decides no size."""


def question(spec: RunSpec) -> str:
    """What decides the sizes of a run, as text.

    Left out is what only changes values: seeds, learning rates, and of a part's options real numbers that are no
    share of something, and those in which the members of a stack may differ, but for ranks.
    """
    plain = spec.dump()
    data: dict[str, Any] = {"labels": len(data_card(spec.data.card).labels), "max_length": spec.data.max_length}
    if spec.task == "masked_lm":
        data["mask_fraction"] = spec.data.mask_fraction
    return canonical_json(
        {
            "task": spec.task,
            "model": plain["model"],
            "data": data,
            "chain": [{"part": options.part, **_sizes(options)} for options in spec.chain],
            "rows": spec.train.micro_batch_size or spec.train.batch_size,
            "precision": spec.train.precision,
            "best": spec.train.select == "best",
            "trains": spec.train.steps != 0,
        }
    )


def _sizes(options: PartOptions) -> dict[str, Any]:
    varies = part(options.part).varies - {"rank"}
    share, fields = get_args(Fraction)[-1], type(options).model_fields
    return {
        name: value
        for name, value in options.model_dump(mode="json", exclude_defaults=True).items()
        if name not in varies and (fields[name].annotation is not float or share in fields[name].metadata)
    }


def forecast_of(spec: RunSpec) -> Forecast:
    """A run's forecast, from the file where it is there.

    Raises:
        ConfigError: the chain does not fit the model.
    """
    return _forecast(Asked(question(spec), spec))


@functools.cache
def _forecast(asked: Asked) -> Forecast:
    known = _known().get(_digest(asked.text))
    if known is not None:
        return parse(Forecast, known, str(FILE))
    found = forecast(asked.spec, 0 if asked.spec.train.steps == 0 else TYPICAL_STEPS, EVAL_BATCH_SIZE)
    works = {name: _coarse(getattr(found, name)) for name in ("micro_batch", "update", "eval_batch")}
    return found.model_copy(update=works)


@functools.cache
def _known() -> dict[str, Any]:
    known: dict[str, Any] = read_json(FILE) if FILE.is_file() else {}
    return known


def _digest(asked: str) -> str:
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _coarse(work: Work) -> Work:
    """The same work with its small kernels as one line."""
    large = [kernel for kernel in work if kernel[0] >= SMALL_FLOPS or kernel[1] >= SMALL_BYTES]
    small = sum(count for _, _, count in work) - sum(count for _, _, count in large)
    return ((0, 0, small), *large) if small else tuple(large)


def main(anew: bool) -> None:
    """Writes the file for every run of every study at the scales that use GPUs."""
    from lowrank.study import SCALES, load_study, points, studies

    if anew:
        _known().clear()
    specs = {
        _digest(question(point.spec)): point.spec
        for study in map(load_study, studies())
        for scale in SCALES
        if scale in study.scales and study.scales[scale].gpus
        for point in points(study, scale)
    }
    lines = []
    for key, spec in progress(sorted(specs.items()), total=len(specs), start=0, label="forecasts"):
        lines.append(f'"{key}":{canonical_json(forecast_of(spec).model_dump(mode="json"))}')
    write_text(FILE, "{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main("--all" in sys.argv[1:])
