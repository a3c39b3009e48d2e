"""The plan: everything a scale's studies need, as JSON that the Snakefile reads.

Validating specs needs the parts, and the parts need torch; Snakemake parses its Snakefile again in
every cluster job. So the plan is computed once, in a process of its own, and cached under a name
made of everything it depends on. Reading it imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank.errors import ConfigError
from lowrank.files import REPOSITORY, canonical_json, read_json, write_json
from lowrank.site import site_file

CACHE = Path(".lowrank")
ENVIRONMENT = "LOWRANK_PLAN"
"""Names the plan file to the commands that the workflow starts."""

_WATCHED = (
    "lowrank/**/*.py",
    "workflow/studies/*.yaml",
    "resources/cards/**/*.yaml",
    "resources/reported/*.yaml",
    "resources/forecasts.json",
)
_WATCHED_DATA = ("resources/smoke/**/*",)


def plan_path(scale: str, studies: list[str]) -> Path:
    """Where the plan of these studies at this scale is cached; the name follows from what it depends on."""
    sha = hashlib.sha256(canonical_json({"scale": scale, "studies": studies}).encode())
    watched = [path for pattern in (*_WATCHED, *_WATCHED_DATA) for path in sorted(REPOSITORY.glob(pattern))]
    for path in (*watched, site_file()):  # the site says how much memory a GPU has
        if path.is_file() and "__pycache__" not in path.parts:
            sha.update(str(path).removeprefix(str(REPOSITORY)).encode())
            sha.update(path.read_bytes())
    return CACHE / f"plan-{sha.hexdigest()[:16]}.json"


def current_plan(scale: str, studies: list[str]) -> tuple[Path, dict[str, Any]]:
    """The plan, computed now if it is not cached.

    Raises:
        ConfigError: what the planning process said.
    """
    path = plan_path(scale, studies)
    if not path.is_file():
        command = [sys.executable, "-m", "lowrank.cli", "plan", "--scale", scale, "--out", str(path), *studies]
        # The code of this checkout, also where another one is installed or the current folder is elsewhere.
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            raise ConfigError(done.stderr.strip() or done.stdout.strip())
    return path, read_json(path)


def rule_of(action: str, *names: str) -> str:
    """The name of the rule that does something with a pack, as in `train_lora_2b_0`.

    Args:
        action: `train` or `evaluate`.
        names: of the pack, and of the evaluation.
    """
    return "_".join([action, *names]).replace(".", "_").replace("-", "_")


def job_environment(path: Path) -> dict[str, str]:
    """The environment of the workflow's jobs.

    They find the plan here. It is no parameter of a rule: a plan that changed elsewhere must not rerun
    what it leaves alone. They run in the environment that runs Snakemake, on the code of this checkout.
    """
    return {
        ENVIRONMENT: str(path.resolve()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(REPOSITORY),
        "LOWRANK_REPOSITORY": str(REPOSITORY),  # for envs/conda.post-deploy.sh, which Snakemake runs from a copy
        # Jobs that wait must not burn the core that another job needs.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        # Nothing but `fetch` uses the network.
        "HF_HUB_OFFLINE": "1",
    }


def load_plan() -> dict[str, Any]:
    """The plan that the workflow named in the environment.

    Raises:
        ConfigError: not started by the workflow.
    """
    named = os.environ.get(ENVIRONMENT)
    if named is None:
        raise ConfigError(f"{ENVIRONMENT} is not set: this command is started by the workflow (see `snakemake -n`)")
    plan: dict[str, Any] = read_json(Path(named))
    return plan


def write_plan(path: Path, plan: dict[str, Any]) -> None:
    """Caches a plan, and drops the ones that were there before it."""
    write_json(path, plan)
    stale = sorted(path.parent.glob("plan-*.json"), key=lambda file: file.stat().st_mtime)[:-8]
    for old in stale:
        old.unlink(missing_ok=True)


def print_plan(plan: dict[str, Any]) -> str:
    """The plan for a person: one line a study, then its packs and how each one's runs are trained."""
    lines = []
    for name, study in plan["studies"].items():
        packs = [pack for pack in plan["packs"].values() if name in pack["owners"]]
        runs = [run for run in plan["runs"].values() if name in run["owners"] and not run["extended"]]
        steps = sum(run["steps"] for run in runs)
        size = f"{len(runs)} runs in {len(packs) - sum(pack['extended'] for pack in packs)} packs, {steps} steps"
        lines.append(f"{name} ({plan['scale']}): {size}, about {study['minutes']:g} min")
        for pack in packs:
            how = told([(len(stack["members"]), stack["why"]) for stack in pack["stacks"]])
            beyond = "; target extended" if pack["extended"] else ""
            lines.append(f"  {pack['name']}: {len(pack['members'])} runs, {how}{beyond}")
    return "\n".join(lines)


def told(found: Sequence[tuple[int, str]]) -> str:
    """How runs are trained, for a person: `7 + 7 together (why), 3 one after another (why)`.

    Args:
        found: of each stack, how many members it has and why.
    """
    together = [(size, why) for size, why in found if size > 1]
    apart = [why for size, why in found if size == 1]
    parts = []
    if together:
        reasons = "; ".join(dict.fromkeys(why for _, why in together))
        parts.append(f"{' + '.join(str(size) for size, _ in together)} together ({reasons})")
    if apart:
        parts.append(f"{len(apart)} one after another ({'; '.join(sorted(set(apart)))})")
    return ", ".join(parts)
