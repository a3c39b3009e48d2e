"""Looks at the current folder and says what stands in the way of a run, and what to type."""

from __future__ import annotations

import base64
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowrank.cards import card_names, data_card, model_card
from lowrank.errors import LowrankError
from lowrank.files import MANIFEST, REPOSITORY, read_json
from lowrank.run_folder import WORK, holding
from lowrank.settings import read_settings
from lowrank.site import EXAMPLE, read_site, site_file
from lowrank.sources import HubSource
from lowrank.verify import runs
from lowrank.yaml_files import read_yaml

LEAST_FREE_GB = 5
SNAKEMAKE = Path(".snakemake")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `ok`, `note` (nothing to do) or `fault`.
        what: one sentence.
        remedy: what to type, where something is to be done.
    """

    level: Literal["ok", "note", "fault"]
    what: str
    remedy: str = ""


def report() -> int:
    """Prints the findings; returns the exit code, 1 where something is to be done."""
    found = examine()
    for finding in found:
        print(f"{finding.level:>5}  {finding.what}" + (f"\n       type: {finding.remedy}" if finding.remedy else ""))
    return int(any(finding.level == "fault" for finding in found))


def examine() -> list[Finding]:
    """Everything that is looked at, in the order in which it stands in the way."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions,
        _configuration,
        _disk,
        _snakemake,
        _unfinished,
        _results,
        _credentials,
        _scheduler,
    )
    return [finding for look in looks for finding in look()]


def _versions() -> Iterator[Finding]:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield Finding("fault", f"Python {sys.version.split()[0]}; allowed: 3.11 to 3.13", "make env PYTHON=python3.12")
    pins: dict[str, str] = {}
    for name in ("torch.txt", "lowrank.lock"):
        text = (REPOSITORY / "envs" / name).read_text(encoding="utf-8")
        pins |= dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)\s*\\?$", text, re.MULTILINE))  # pins of any machine
    wrong = []
    for package, version in pins.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        if found.split("+")[0] != version:  # a build of torch is named behind a plus
            wrong.append(f"{package} is {found}, pinned {version}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        yield Finding("fault", f"packages differ from the pins: {'; '.join(wrong[:3])}{more}", "make env")
    else:
        yield Finding("ok", f"{len(pins)} packages are what is pinned")


def _configuration() -> Iterator[Finding]:
    try:
        settings = read_settings(read_yaml(REPOSITORY / "config.yaml"))
        yield Finding("ok", f"config.yaml: scale {settings.scale}, studies {', '.join(settings.chosen())}")
    except LowrankError as error:
        yield Finding("fault", str(error), "edit config.yaml")
    try:
        read_site()
    except LowrankError as error:
        yield Finding("fault", str(error), "edit site.yaml; docs/cluster.md explains its keys")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free / 1e9
    if free < LEAST_FREE_GB:
        what = f"{free:.1f} GB are free here; checkpoints and results want {LEAST_FREE_GB} or more"
        yield Finding("fault", what, "free some, or run elsewhere: snakemake --directory ...")
    else:
        yield Finding("ok", f"{free:.0f} GB are free")
    if not os.access(".", os.W_OK):
        yield Finding("fault", f"{Path.cwd()} cannot be written to", "run in a folder of your own")


def _snakemake() -> Iterator[Finding]:
    locks = list((SNAKEMAKE / "locks").glob("*"))
    others = _other_snakemakes() if locks else []
    if locks and others:
        yield Finding("note", f"Snakemake runs here already, as process {', '.join(others)}; it holds the lock")
    elif locks:
        what = "a Snakemake that was killed left its lock: none runs in this folder, on this machine"
        yield Finding("fault", what, "snakemake --unlock")
    incomplete = SNAKEMAKE / "incomplete"
    names = sorted(_decoded(path.relative_to(incomplete)) for path in incomplete.rglob("*") if path.is_file())
    if names and not others:
        shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        what = f"{len(names)} outputs were being made when Snakemake was killed: {shown}"
        yield Finding("fault", what, "snakemake --cores all --rerun-incomplete")


def _other_snakemakes() -> list[str]:
    """Processes of Snakemake whose folder this is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            here = (process / "cwd").resolve() == Path.cwd()
        except OSError:
            continue
        if here and any(word.endswith(b"snakemake") for word in words[:4]):
            found.append(process.name)
    return found


def _decoded(mark: Path) -> str:
    """The output that a mark of Snakemake is for: its path in base 64, a long one in pieces that begin with an @."""
    try:
        return base64.urlsafe_b64decode("".join(part.removeprefix("@") for part in mark.parts)).decode()
    except ValueError:
        return str(mark)


def _unfinished() -> Iterator[Finding]:
    for folder in sorted(WORK.glob("*/checkpoints")):
        run = folder.parent.name
        steps = sorted(path.name for path in folder.glob("step-*"))
        place = f"step {int(steps[-1].split('-')[1])}" if steps else "its start"
        try:
            with holding(run):
                yield Finding("note", f"{run} stands at {place} and goes on from there with the next call")
        except LowrankError:
            yield Finding("note", f"{run} is being trained by another process")


def _results() -> Iterator[Finding]:
    found = list(runs())
    for folder, fault in found:
        if fault is not None:
            yield Finding("fault", fault.why, f"lowrank rerun {folder.name}")
        elif (manifest := read_json(folder / MANIFEST)).get("status") == "failed":
            yield Finding("note", f"{folder.name} failed: {manifest['cause']}", f"lowrank rerun {folder.name}")
    if found and not any(fault for _, fault in found):
        yield Finding("ok", f"{len(found)} runs are whole; `lowrank verify` looks at everything")


def _credentials() -> Iterator[Finding]:
    cards = [data_card(name) for name in card_names("data")] + [model_card(name) for name in card_names("models")]
    hubs = sum(isinstance(card.source, HubSource) for card in cards)
    token = os.environ.get("HF_TOKEN") or (Path.home() / ".cache" / "huggingface" / "token").is_file()
    if hubs and not token:
        what = f"no token for the Hugging Face hub; {hubs} cards of paper scale come from there, which may ask for one"
        yield Finding("note", what, "export HF_TOKEN=...")


def _scheduler() -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield Finding("note", "no SLURM here; --profile slurm needs a login node")
        return
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=30, check=False)
        answers = "UP" in ping.stdout
    except (OSError, subprocess.TimeoutExpired):
        answers = False
    if answers:
        yield Finding("ok", "SLURM's controller answers")
        if not site_file().is_file():
            what = "no site.yaml names this cluster's account and partitions; jobs get SLURM's own defaults"
            yield Finding("note", what, f"cp {EXAMPLE} site.yaml, then edit it; docs/cluster.md explains its keys")
    else:
        what = (
            "SLURM is installed, but its controller does not answer; every call of Snakemake waits ten seconds for it"
        )
        yield Finding("note", what, "ask whoever runs the cluster")
