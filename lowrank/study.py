"""A study: YAML that names runs and says what to show of them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lowrank.errors import ConfigError
from lowrank.files import REPOSITORY
from lowrank.registry import part
from lowrank.spec import DataSpec, EvalSpec, ModelSpec, RunSpec, TrainSpec
from lowrank.strict import Name, NonNegativeInt, PositiveFloat, PositiveInt, Strict, parse, suggest
from lowrank.yaml_files import record_once

STUDIES = REPOSITORY / "workflow" / "studies"

Scale = Literal["smoke", "laptop", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "laptop", "paper")

_SECTIONS: dict[str, type[Strict]] = {"train": TrainSpec, "model": ModelSpec, "data": DataSpec}


class Arm(Strict):
    """One method of a study."""

    title: str
    chain: Any
    set: dict[str, Any] = {}
    """Values that differ from the study's base."""
    keep_weights: Literal["all", "none"] = "all"
    """`none` scores the run in its training job and keeps no weights."""


class Extended(Strict):
    """What goes beyond the document or beyond one seed of a large model: the target `extended`, no part of `all`."""

    sweeps: dict[str, tuple[dict[str, Any], ...]]
    minutes: PositiveFloat


class ScaleSpec(Strict):
    """What a study is at one scale: only sizes, sources and grids differ."""

    base: dict[str, Any]
    """Sections of the RunSpec that every run shares."""
    sweeps: dict[str, tuple[dict[str, Any], ...]]
    """Arm -> grids; each grid is the product of its axes."""
    dropped: str = ""
    """What of the document's own grid is left out here, and why."""
    pack_size: PositiveInt = 256
    """Most runs in one pack; with GPUs, what they take together limits it too."""
    evaluations: dict[Name, dict[str, Any]] = {}
    """Evaluation -> what differs of it here: sizes, such as `rows` or a length among its `options`."""
    minutes: PositiveFloat
    """How long it takes on a quiet machine of that scale, for the forecast that is printed first."""
    mem_mb: PositiveInt = 2000
    gpus: NonNegativeInt = 0
    """Accelerators of one scoring job, and of each process of a training job."""
    processes: PositiveInt = 1
    """Most processes that train one run together: as many as divide its batch's micro-batches evenly. The run is the
    same by more or fewer of them."""
    extended: Extended | None = None

    def grids(self) -> Iterator[tuple[str, str, dict[str, Any], bool]]:
        """Every grid: arm, place in the file, the grid, and whether only `extended` trains it."""
        for place, owner in (("sweeps", self), ("extended.sweeps", self.extended)):
            for arm, grids in owner.sweeps.items() if owner else ():
                for index, grid in enumerate(grids):
                    yield arm, f"{place}.{arm}.{index}", grid, owner is self.extended


class Evaluation(EvalSpec):
    """What a study asks of its runs."""

    arms: tuple[Name, ...] = ()
    """The arms that it is asked of; all of them where empty."""

    def spec(self) -> EvalSpec:
        """The question itself, which other studies may ask too."""
        return EvalSpec(**{name: getattr(self, name) for name in EvalSpec.model_fields})


class Study(Strict):
    """One document's questions, runs and views."""

    study: Name
    title: str
    document: str
    source: str
    question: str
    protocol: tuple[str, ...]
    """Sentences of the protocol box."""
    arms: dict[Name, Arm]
    pack: tuple[str, ...] = ()
    """Axes along which runs are trained together; `chain` is the whole method, where many have few runs each."""
    evaluations: dict[Name, Evaluation]
    scales: dict[Scale, ScaleSpec]
    key_figure: Name | None = None
    key_claims: tuple[Name, ...] = ()
    """The figure that carries the message, and the claims that answer the question; the front page shows both."""
    tables: Any = None
    figures: Any = None
    claims: Any = None
    """Views; `lowrank.report.views` reads them."""


class Point(Strict):
    """One run of a study: the arm and axes it stands for, and its spec."""

    arm: str
    axes: dict[str, Any]
    spec: RunSpec
    extended: bool = False
    """Whether only the target `extended` trains it."""


def studies() -> list[str]:
    """Names of the studies that exist."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def load_study(name: str) -> Study:
    """Reads and checks `workflow/studies/<name>.yaml`.

    Raises:
        ConfigError: no such study, or a fault in it.
    """
    if name not in studies():
        raise ConfigError(f"unknown study {name!r}{suggest(name, studies())}")
    path = STUDIES / f"{name}.yaml"
    study: Study = record_once(Study, path, path.stat().st_mtime_ns, _shown(path))
    if study.study != name:
        raise ConfigError(f"{_shown(path)}: study: {study.study!r}, but the file is called {name!r}")
    named = {f"evaluations.{label}.arms": asked.arms for label, asked in study.evaluations.items()}
    for scale, spec in study.scales.items():
        evaluations(study, scale)
        named[f"scales.{scale}.sweeps"] = tuple(spec.sweeps)
        named[f"scales.{scale}.extended.sweeps"] = tuple(spec.extended.sweeps if spec.extended else ())
    for place, arms in named.items():
        for arm in arms:
            if arm not in study.arms:
                raise ConfigError(f"{_shown(path)}: {place}: unknown arm {arm!r}{suggest(arm, study.arms)}")
    chains = [_chain(arm.chain, f"{_shown(path)}: arms.{name}") for name, arm in study.arms.items()]
    known = {"seed", "chain"}.union(*(_owners({"chain": chain}) for chain in chains))
    for axis in study.pack:
        if axis not in known:
            raise ConfigError(f"{_shown(path)}: pack: unknown axis {axis!r}{suggest(axis, known)}")
    return study


def evaluations(study: Study, scale: Scale) -> dict[str, EvalSpec]:
    """What is asked of a study's runs at a scale, by label.

    Raises:
        ConfigError: the scale changes an evaluation that is not there, or to what it refuses.
    """
    where = f"{_shown(STUDIES / f'{study.study}.yaml')}: scales.{scale}.evaluations"
    changes = study.scales[scale].evaluations
    for label in changes:
        if label not in study.evaluations:
            raise ConfigError(f"{where}: unknown evaluation {label!r}{suggest(label, study.evaluations)}")
    found = {}
    for label, evaluation in study.evaluations.items():
        raw = evaluation.spec().model_dump(exclude_defaults=True)
        change = changes.get(label, {})
        options = {**raw.get("options", {}), **change.get("options", {})}
        found[label] = parse(EvalSpec, {**raw, **change, "options": options}, f"{where}.{label}")
    return found


def points(study: Study, scale: Scale) -> Iterator[Point]:
    """Every run of a study at a scale, grid by grid.

    Raises:
        ConfigError: the scale is missing, an axis is unknown, or a value is out of range.
    """
    if scale not in study.scales:
        raise ConfigError(f"study {study.study}: no scale {scale!r}{suggest(scale, study.scales)}")
    spec = study.scales[scale]
    for name, at, grid, extended in spec.grids():
        place = f"{_shown(STUDIES / f'{study.study}.yaml')}: scales.{scale}.{at}"
        axes = {axis: value if isinstance(value, list) else [value] for axis, value in grid.items()}
        for axis, listed in axes.items():
            if not listed:
                raise ConfigError(f"{place}: {axis}: an empty list, so nothing would run; leave the grid out")
        for values in itertools.product(*axes.values()):
            told = dict(zip(axes, values, strict=True))
            yield Point(arm=name, axes=told, spec=_spec(spec.base, study.arms[name], told, place), extended=extended)


def _spec(base: dict[str, Any], arm: Arm, axes: dict[str, Any], where: str) -> RunSpec:
    raw = copy.deepcopy(base)
    raw["chain"] = _chain(arm.chain, where)
    for axis, value in {**arm.set, **axes}.items():
        set_axis(raw, axis, value, where)
    return parse(RunSpec, raw, where)


def _chain(chain: Any, where: str) -> list[dict[str, Any]]:
    entries = chain.split("+") if isinstance(chain, str) else chain
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: a chain is a list of parts or a string such as 'nf4+lora'; found {chain!r}")
    for entry in entries:
        if not isinstance(entry, str) and not (isinstance(entry, dict) and "part" in entry):
            raise ConfigError(f"{where}: an entry of a chain is a part or {{part: lora, rank: 8}}; found {entry!r}")
    return [{"part": entry} if isinstance(entry, str) else dict(entry) for entry in entries]


def _owners(raw: dict[str, Any]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Axis -> what holds it, as (dotted name, the mapping of the unparsed spec)."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    sections = [(name, record, raw.setdefault(name, {})) for name, record in _SECTIONS.items()]
    parts = [(entry["part"], part(entry["part"]).Options, entry) for entry in raw["chain"]]
    for name, record, values in [*sections, *parts]:
        for field in record.model_fields:
            for axis in (field, f"{name}.{field}"):
                found.setdefault(axis, []).append((f"{name}.{field}", values))
    return found


def set_axis(raw: dict[str, Any], axis: str, value: Any, where: str) -> None:
    """Sets an axis in an unparsed spec.

    Args:
        raw: the spec; its chain is a list of mappings.
        axis: `seed`, a field (`lr`, `train.lr`) or a part's option (`rank`, `lora.rank`); a bare name must be unique.
        value: unparsed.
        where: starts the message.

    Raises:
        ConfigError: the axis is unknown or ambiguous.
    """
    if axis in ("seed", "task"):
        raw[axis] = value
        return
    known = _owners(raw)
    if axis not in known:
        raise ConfigError(f"{where}: unknown axis {axis!r}{suggest(axis, {'seed', 'task', *known})}")
    if len(known[axis]) > 1:
        names = ", ".join(sorted(name for name, _ in known[axis]))
        raise ConfigError(f"{where}: axis {axis!r} is ambiguous: {names}; write one of these")
    ((_, owner),) = known[axis]
    owner[axis.rsplit(".", 1)[-1]] = value


def _shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))
