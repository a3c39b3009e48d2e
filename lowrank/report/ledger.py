"""Every number and sentence a document publishes: `resources/reported/<study>.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from lowrank.errors import ConfigError
from lowrank.files import REPOSITORY
from lowrank.report.kinds import CellRef
from lowrank.strict import Name, NonNegativeFloat, PositiveFloat, PositiveInt, Strict, parse
from lowrank.yaml_files import read_yaml

REPORTED = REPOSITORY / "resources" / "reported"


class Entry(Strict):
    """One published number or sentence."""

    id: Name
    line: PositiveInt
    """Line of the document."""
    kind: Literal["analytic", "directional", "numeric"]
    value: float | tuple[float, float] | str | None = None
    """A number, a range, or a sentence; null where the document hides a point it should show."""
    reading: NonNegativeFloat = 0.0
    """How far a value read from an image may be off."""
    tolerance: NonNegativeFloat | None = None
    """Largest absolute difference that reproduces the value, beyond `reading`."""
    factor: PositiveFloat | None = None
    """Largest ratio, either way, that reproduces the value."""
    among: bool = False
    """The value is a setting: where our cell lists it, it holds by construction, for we typed it in."""
    cell: CellRef | None = None
    """Where our answer stands."""
    at_most: CellRef | None = None
    """A bound that follows from the method: a published value beyond it is impossible, whatever was run."""
    at_least: CellRef | None = None
    """The same from below."""
    claim: Name | None = None
    note: str = ""

    @model_validator(mode="after")
    def _answered_once(self) -> Entry:
        if (self.cell is None) == (self.claim is None):
            raise ValueError(f"{self.id}: one of `cell` and `claim` answers an entry")
        given = sum((self.tolerance is not None, self.factor is not None, self.among))
        if self.cell is not None and given != 1:
            raise ValueError(f"{self.id}: one of `tolerance`, `factor` and `among` says when a cell reproduces it")
        return self


class Artefact(Strict):
    """A figure, table or claim of the document."""

    id: Name
    title: str
    count: PositiveInt
    """How many entries there are, so that none gets lost."""
    entries: tuple[Entry, ...]


class Ledger(Strict):
    """A document's published numbers."""

    study: Name
    document: str
    artefacts: tuple[Artefact, ...]

    @model_validator(mode="after")
    def _counted(self) -> Ledger:
        seen: set[str] = set()
        for artefact in self.artefacts:
            if len(artefact.entries) != artefact.count:
                raise ValueError(f"{artefact.id}: {len(artefact.entries)} entries, count says {artefact.count}")
            for entry in artefact.entries:
                if entry.id in seen:
                    raise ValueError(f"{artefact.id}: entry {entry.id!r} stands twice")
                seen.add(entry.id)
        return self

    def entries(self) -> list[tuple[Artefact, Entry]]:
        """Every entry with its artefact, in the order of the file."""
        return [(artefact, entry) for artefact in self.artefacts for entry in artefact.entries]

    def artefact(self, name: str) -> Artefact:
        """The artefact of that id.

        Raises:
            ConfigError: no such artefact.
        """
        for artefact in self.artefacts:
            if artefact.id == name:
                return artefact
        raise ConfigError(f"{self.study}: no artefact {name!r} (there are: {', '.join(a.id for a in self.artefacts)})")


def load_ledger(study: str, folder: Path = REPORTED) -> Ledger:
    """Reads and checks a study's published numbers.

    Raises:
        ConfigError: no such file, or a fault in it.
    """
    path = folder / f"{study}.yaml"
    where = str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)
    return parse(Ledger, read_yaml(path), where)
