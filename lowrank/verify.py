"""Holds every output against the hashes that were written when it was made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lowrank.data.fetch import DOWNLOADS
from lowrank.errors import IntegrityError
from lowrank.files import MANIFEST, check_seal, hash_files, read_json, sha256_file, write_json
from lowrank.plan import rule_of
from lowrank.run_folder import EVALUATIONS, RUNS, WEIGHTS

PREPARED = Path("resources/prepared")
RESULTS = Path("results")
STUDIES = RESULTS / "studies"
REPORTS = Path("reports")
SEALS = REPORTS / ".seals"
INDEX = "index"


@dataclass(frozen=True)
class Fault:
    """An output that is not what it was when it was made.

    Attributes:
        place: its path.
        why: what is wrong with it.
        rule: the rule of the workflow that made it.
        remedy: the command that makes it again.
    """

    place: str
    why: str
    rule: str
    remedy: str


def seal_pages(page: str) -> None:
    """Writes down the hashes of what a rule of pages made, by path from the current folder.

    Of a study its page and the pages of its runs; of `index` the front page and the files over all studies.
    """
    made = [REPORTS / f"{page}.html", *(REPORTS / "runs" / page).rglob("*.html")]
    made += [file for file in RESULTS.glob("*.*") if file.is_file()] if page == INDEX else []
    write_json(SEALS / f"{page}.json", {"files": hash_files(Path(), list(map(str, made)))})


def report() -> int:
    """Prints what differs, who made it and how to make it again; returns the exit code."""
    checked, faults = verify()
    for fault in faults:
        print(f"{fault.place}: {fault.why}\n  made by {fault.rule}; to make it again: {fault.remedy}")
    print(f"{checked} outputs checked, {len(faults)} differ.")
    return IntegrityError.exit_code if faults else 0


def verify() -> tuple[int, list[Fault]]:
    """Re-hashes everything that is sealed below the current folder; how many outputs, and the faults."""
    checked, faults = 0, []
    for fault in _all():
        checked += 1
        if fault is not None:
            faults.append(fault)
    return checked, faults


def runs() -> Iterator[tuple[Path, Fault | None]]:
    """The folder of every run, and what is wrong with it; Snakemake makes empty ones before a job starts."""
    for folder in _folders(RUNS):
        if any(path.is_file() for path in folder.rglob("*")):
            yield folder, _run(folder)


def _all() -> Iterator[Fault | None]:
    for folder, fault in runs():
        yield fault
        yield from (_score(folder, file) for file in sorted((folder / EVALUATIONS).glob("*.json")))
    for folder in _folders(DOWNLOADS):
        yield _sealed(folder, "fetch", f"rm -r {folder} && lowrank fetch {folder.name}")
    for folder in _folders(PREPARED):
        yield _sealed(folder, "prepare", f"rm -r {folder} && snakemake --cores all")
    for folder in _folders(STUDIES):
        rule = f"tables_{folder.name}"
        yield _sealed(folder, rule, f"snakemake --cores all --forcerun {rule} -- {folder.name}")
    for seal in sorted(SEALS.glob("*.json")):
        yield from _pages(seal)


def _folders(home: Path) -> list[Path]:
    """What stands under its own name; a folder that is being written begins with a dot."""
    return sorted(path for path in home.glob("[!.]*") if path.is_dir())


def _sealed(folder: Path, rule: str, remedy: str) -> Fault | None:
    try:
        check_seal(folder)
    except IntegrityError as error:
        return Fault(str(folder), str(error), rule, remedy)
    return None


def _run(folder: Path) -> Fault | None:
    try:
        pack = str(read_json(folder / MANIFEST)["pack"])
    except (IntegrityError, KeyError, TypeError):
        pack = ""  # what is wrong is said below
    rule = rule_of("train", pack) if pack else "train"
    return _sealed(folder, rule, f"lowrank rerun {folder.name} && snakemake --cores all")


def _score(folder: Path, file: Path) -> Fault | None:
    """A score that is part of the sealed run is checked with it; a later one names the weights that it is of."""
    why = None
    try:
        manifest, record = read_json(folder / MANIFEST), read_json(file)
        weights = manifest["files"].get(WEIGHTS)
        if record["weights"] is not None and record["weights"] != weights:
            why = f"is of the weights {record['weights'][:12]}, but the run holds {str(weights)[:12]}"
    except IntegrityError as error:
        why = str(error)
    except (KeyError, TypeError):
        why = "is no record of a score"
    return None if why is None else Fault(str(file), why, "evaluate", f"rm {file} && snakemake --cores all")


def _pages(seal: Path) -> Iterator[Fault | None]:
    rule = INDEX if seal.stem == INDEX else f"page_{seal.stem}"
    remedy = f"snakemake --cores all --forcerun {rule} -- {REPORTS / seal.stem}.html"
    try:
        expected = dict(read_json(seal)["files"])
    except (IntegrityError, KeyError, TypeError, ValueError):
        yield Fault(str(seal), "names no pages, so it is damaged", rule, remedy)
        return
    for name, sha256 in expected.items():
        page = Path(name)
        why = None if page.is_file() else "was made, but is not there"
        if why is None and (found := sha256_file(page)) != sha256:
            why = f"sha256 is {found}, was {sha256}"
        yield None if why is None else Fault(str(page), why, rule, remedy)
