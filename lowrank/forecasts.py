"""What runs hold and compute; `python -m lowrank.forecasts` writes the answers that the committed studies need.

It plans each study, and all of them, at every scale, and keeps what was asked, one answer a line: those of
`lowrank.asked` that the file has not are found, and with `--all` every one is found anew.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, get_args

from lowrank.asked import ASKED, FILE, answer, answers, shape
from lowrank.cards import data_card, model_card
from lowrank.console import progress
from lowrank.evaluate.score import rows_at_a_time
from lowrank.files import canonical_json, write_text
from lowrank.measure.forecast import Forecast, forecast
from lowrank.measure.tally import Work
from lowrank.registry import part
from lowrank.spec import PartOptions, RunSpec
from lowrank.strict import Fraction, parse
from lowrank.tasks import task
from lowrank.train.loop import EVAL_BATCH_SIZE

SMALL_FLOPS, SMALL_BYTES = 10**8, 10**6
"""Kernels below both start no sooner than they are done, on any GPU; they are counted together."""

TYPICAL_STEPS = 1000
"""How long a run is taken to be that trains at all: its length decides no size."""


def question(spec: RunSpec) -> dict[str, Any]:
    """What decides the sizes of a run.

    Left out is what only changes values: seeds, learning rates, and of a part's options real numbers that are no
    share of something, and those in which the members of a stack may differ, but for ranks.
    """
    data: dict[str, Any] = {"max_length": spec.data.max_length}
    if spec.task == "masked_lm":
        data["mask_fraction"] = spec.data.mask_fraction
    return {
        "asked": "forecast",
        **shape(spec, len(data_card(spec.data.card).labels)),
        "data": data,
        "chain": [{"part": options.part, **_sizes(options)} for options in spec.chain],
        "rows": spec.train.micro_batch_size or spec.train.batch_size,
        "precision": spec.train.precision,
        "best": spec.train.select == "best",
        "trains": spec.train.steps != 0,
    }


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
    return parse(Forecast, answer(question(spec), functools.partial(_forecast, spec)), str(FILE))


def eval_rows(spec: RunSpec) -> int:
    """Rows of a batch in an evaluation of a run."""
    vocabulary = int(str(model_card(spec.model.card).config.get("vocab_size", 1)))
    return rows_at_a_time(task(spec.task), EVAL_BATCH_SIZE, spec.data.max_length, vocabulary)


def _forecast(spec: RunSpec) -> Any:
    found = forecast(spec, 0 if spec.train.steps == 0 else TYPICAL_STEPS, eval_rows(spec))
    works = {name: _coarse(getattr(found, name)) for name in ("micro_batch", "update", "eval_batch")}
    return found.model_copy(update=works).model_dump(mode="json")


def _coarse(work: Work) -> Work:
    """The same work with its small kernels as one line."""
    large = [kernel for kernel in work if kernel[0] >= SMALL_FLOPS or kernel[1] >= SMALL_BYTES]
    small = sum(count for _, _, count in work) - sum(count for _, _, count in large)
    return ((0, 0, small), *large) if small else tuple(large)


def main(anew: bool) -> None:
    """Writes the file, from what every plan of the committed studies asks."""
    from lowrank.planning import make_plan
    from lowrank.study import SCALES, studies

    if anew:
        answers().clear()
    plans = [(scale, names) for scale in SCALES for names in (studies(), *([name] for name in studies()))]
    for scale, names in progress(plans, total=len(plans), start=0, label="plans"):
        make_plan(scale, names)
    lines = [f'"{key}":{canonical_json(answers()[key])}' for key in sorted(ASKED)]
    write_text(FILE, "{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main("--all" in sys.argv[1:])
