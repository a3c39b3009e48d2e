"""Computes a plan; `lowrank.plan` caches and reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lowrank import cards
from lowrank.cards import Card, DataCard, ModelCard, data_card, model_card, prepared_id, run_pins, run_spec
from lowrank.checks import check
from lowrank.collect import shown
from lowrank.digest import code_digest, evaluate_digest, protocol_digest, report_digests, train_digest
from lowrank.errors import ConfigError
from lowrank.estimate import steps_of
from lowrank.grouping import alike, digest, joint
from lowrank.needs import add_needs, cut, processes
from lowrank.registry import protocol
from lowrank.report.views import parse_views
from lowrank.sources import TrainedSource
from lowrank.spec import HASH_DIGITS, DataSpec, EvalSpec, RunSpec, eval_id, run_id
from lowrank.stacks import Room, planned
from lowrank.study import evaluations, load_study, points

PLAN_PARTS = ("scale", "studies", "runs", "packs", "data", "cards", "evaluations")


class Planner:
    """Collects what studies need, each thing once, at a scale: smoke, laptop or paper."""

    def __init__(self, scale: Any) -> None:
        self.scale = scale
        self.studies: dict[str, Any] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.packs: dict[str, dict[str, Any]] = {}
        self.data: dict[str, dict[str, Any]] = {}
        self.cards: dict[str, dict[str, Any]] = {}
        self.evaluations: dict[str, dict[str, Any]] = {}
        self._specs: dict[str, RunSpec] = {}
        self._digests: dict[str, dict[str, str]] = {}

    def plan(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {name: getattr(self, name) for name in PLAN_PARTS}

    def add_study(self, name: str) -> None:
        """Adds a study's runs and what they need.

        Raises:
            ConfigError: any fault in the study, its cards or specs.
        """
        study = load_study(name)
        table: list[dict[str, Any]] = []
        for point in points(study, self.scale):
            where = f"study {name}: arm {point.arm}, {', '.join(f'{k} {v}' for k, v in point.axes.items())}"
            try:
                run = self.add_run(point.spec, name, study.arms[point.arm].keep_weights == "all", point.extended)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
            if any(row["run"] == run and row["arm"] == point.arm for row in table):
                raise ConfigError(f"{where}: the arm has this run already, from another of its grids")
            table.append({"arm": point.arm, "run": run, **point.axes})
        views = parse_views(study.model_dump(), name)
        self.studies[name] = {
            "title": study.title,
            "document": study.document,
            "runs": table,
            "outputs": views.outputs(),
            "counted": [f"{name}.csv" for name in views.counted()],
            "minutes": study.scales[self.scale].minutes,
            **report_digests(name, [views.tables[table] for table in views.counted()]),
        }

    def pack_study(self, name: str) -> None:
        """Groups a study's runs into packs; to be called when all studies are added, since they share runs."""
        study = load_study(name)
        here = study.scales[self.scale]
        only = {
            label: {row["run"] for row in self.studies[name]["runs"] if row["arm"] in wanted.arms}
            for label, wanted in study.evaluations.items()
            if wanted.arms
        }
        asked = evaluations(study, self.scale)
        self.add_packs(name, study.pack, asked, here.pack_size, here.mem_mb, only, here.gpus, here.processes)

    def add_run(self, spec: RunSpec, owner: str, keep_weights: bool, extended: bool = False) -> str:
        """Adds a run, and the runs that its base model comes from; returns its id.

        Raises:
            ConfigError: an unknown card, or a chain that cannot work on the model or share out the batches.
        """
        model, data = model_card(spec.model.card), data_card(spec.data.card)
        check(spec, model, data)
        if isinstance(model.source, TrainedSource):
            self._add_card(model, self.add_run(run_spec(model), owner, keep_weights=True, extended=extended))
        pins = run_pins(model, data)
        run = run_id(spec, pins)
        if run not in self.runs:
            self._specs[run] = spec
            self.runs[run] = {
                "spec": spec.dump(),
                "pins": pins,
                **self._code(spec),
                "data": self._add_data(spec.data, model, data),
                "cards": [self._add_card(model), self._add_card(data)],
                "shown": shown(spec, model.title, data.title),
                "keep_weights": False,
                "steps": steps_of(spec),
                "owners": [],
                "extended": True,
            }
        entry = self.runs[run]
        entry["extended"] &= extended  # what `all` asks for too is part of `all`
        entry["keep_weights"] |= keep_weights  # what one study wants to keep is kept
        entry["owners"] += [owner] if owner not in entry["owners"] else []
        return run

    def _code(self, spec: RunSpec) -> dict[str, str]:
        reached = ".".join([*(options.part for options in spec.chain), *spec.train.observe])
        if reached not in self._digests:
            self._digests[reached] = {"code": train_digest(spec), "evaluate_code": evaluate_digest(spec)}
        return self._digests[reached]

    def add_packs(
        self,
        owner: str,
        axes: Iterable[str],
        evaluations: Mapping[str, EvalSpec],
        size: int,
        mem_mb: int,
        only: Mapping[str, Collection[str]] | None = None,
        gpus: int = 0,
        most: int = 1,
    ) -> None:
        """Groups the owner's runs that are in no pack yet by everything but the packed axes.

        Args:
            owner: the study whose runs are grouped.
            axes: short or dotted names, as in a sweep.
            evaluations: label -> protocol; every pack with a run of the owner's is scored by them.
            size: most runs in one pack.
            mem_mb: what a pack may need.
            only: label -> the runs that are scored by it, where that is not all of them.
            gpus: what a process of a pack's job gets; with one, its memory decides how many runs train together.
            most: processes that may train one run together.
        """
        only = only or {}
        free = {run: entry for run, entry in self.runs.items() if owner in entry["owners"] and "pack" not in entry}
        for key, runs in alike(free, set(axes), only).items():
            digest = hashlib.sha256(key.encode()).hexdigest()[:HASH_DIGITS]
            specs = {run: self._specs[run] for run in runs}
            ranks = processes([spec.train for spec in specs.values()], most)
            most_runs = 1 if free[runs[0]]["extended"] else size  # the largest models: days for each run
            asked = [spec for label, spec in evaluations.items() if set(only.get(label, runs)) & set(runs)]
            room = Room.of(mem_mb, gpus, ranks)
            for index, members in enumerate(cut({run: free[run] for run in runs}, most_runs, asked, room)):
                self._add_pack(f"{digest}-{index}", {run: specs[run] for run in members}, mem_mb, room)
        for pack in self.packs.values():
            if any(owner in self.runs[run]["owners"] for run in pack["members"]):
                pack["owners"].append(owner)
                model = model_card(self.runs[pack["members"][0]]["spec"]["model"]["card"])
                for label, spec in evaluations.items():
                    if label not in only or set(only[label]) & set(pack["members"]):
                        pack["evaluations"] |= self._add_evaluation(owner, label, spec, model, pack["data"])
                self._mark_code(pack)

    def _add_pack(self, digest: str, specs: Mapping[str, RunSpec], mem_mb: int, room: Room) -> None:
        members = list(specs)
        first = self.runs[members[0]]
        chains = {".".join(options.part for options in spec.chain) for spec in specs.values()}
        name = f"{chains.pop() if len(chains) == 1 else 'several'}-{digest}"
        for run in members:
            self.runs[run]["pack"] = name
        self.packs[name] = {
            "name": name,
            "members": members,
            "stacks": planned(specs, room),
            **{key: first[key] for key in ("data", "cards", "keep_weights", "extended")},
            **{key: joint([self.runs[run][key] for run in members]) for key in ("code", "evaluate_code")},
            "evaluations": {},
            "steps": sum(self.runs[run]["steps"] for run in members),
            "owners": [],
            "mem_mb": mem_mb,
            "processes": room.processes,
        }

    def _mark_code(self, pack: dict[str, Any]) -> None:
        """Where weights are not kept, runs are scored in the training job: the code that scores made them too."""
        if pack["keep_weights"]:
            return
        scoring = sorted(self.evaluations[name]["code"] for name in pack["evaluations"])
        for run in pack["members"]:
            own = self._code(self._specs[run])
            self.runs[run]["code"] = digest([own["code"], own["evaluate_code"], *scoring])
        pack["code"] = joint([self.runs[run]["code"] for run in pack["members"]])

    def _add_evaluation(
        self, owner: str, label: str, spec: EvalSpec, model: ModelCard, trained_on: str
    ) -> dict[str, str]:
        """Id of the evaluation -> id of the prepared data that it scores a pack on."""
        data = None if spec.data is None else data_card(spec.data.card)
        name = eval_id(spec, {} if data is None else {data.name: data.pin})
        entry = self.evaluations.setdefault(
            name,
            {
                "spec": spec.model_dump(mode="json", exclude_defaults=True),
                "metrics": list(protocol(spec.protocol).metrics),
                "steps": protocol(spec.protocol).steps,
                "code": protocol_digest(spec),
                "labels": {},
            },
        )
        if entry["labels"].setdefault(owner, label) != label:
            raise ConfigError(f"study {owner}: evaluations {entry['labels'][owner]!r} and {label!r} ask the same")
        return {name: trained_on if spec.data is None or data is None else self._add_data(spec.data, model, data)}

    def _add_data(self, spec: DataSpec, model: ModelCard, data: DataCard) -> str:
        name = prepared_id(spec, model, data)
        if name not in self.data:
            self.data[name] = {
                "spec": spec.model_dump(mode="json", exclude_defaults=True),
                "model": model.name,
                "cards": [self._add_card(card) for card in cards.prepared_from(model, data)],
                "code": code_digest(["lowrank.data.prepare"]),
            }
        return name

    def _add_card(self, card: Card, run: str | None = None) -> str:
        """A card as the fetch rule knows it; `run` is the one whose weights a trained card holds."""
        self.cards.setdefault(card.name, {"pin": card.pin, "title": card.title, "kind": card.source.kind, "run": run})
        return card.name


def make_plan(scale: str, names: list[str]) -> dict[str, Any]:
    """Resolves studies into runs, packs, evaluations, data and cards; validates everything.

    Args:
        scale: smoke, laptop or paper.
        names: studies, in the order in which the report shows them.

    Raises:
        ConfigError: any fault in a study, card or spec.
    """
    planner = Planner(scale)
    for name in names:
        planner.add_study(name)
    for name in names:
        planner.pack_study(name)
    return add_needs(planner.plan(), {name: load_study(name).scales[planner.scale] for name in names})
