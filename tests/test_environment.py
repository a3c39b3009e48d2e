"""One pinned environment rules: what is installed, what is locked and what is written agree."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(name: str) -> list[Requirement]:
    """The requirements of a file in envs/, without comments and hashes."""
    lines = (ROOT / "envs" / name).read_text().splitlines()
    return [Requirement(line.rstrip(" \\")) for line in lines if re.match(r"[A-Za-z]", line)]


def pin(requirement: Requirement) -> str:
    (only,) = requirement.specifier
    assert only.operator == "==", requirement
    return only.version


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def texts(paths: list[Path]) -> dict[str, str]:
    """Path below the root to content, for those files that are text."""
    found = {}
    for path in paths:
        raw = path.read_bytes()
        if b"\0" not in raw:
            found[str(path.relative_to(ROOT))] = raw.decode(errors="replace")
    return found


def test_installed_is_what_is_locked() -> None:
    locked = [r for r in requirements("lowrank.lock") if r.marker is None or r.marker.evaluate()]
    assert len(locked) > 100
    wrong = {r.name: importlib.metadata.version(r.name) for r in locked if importlib.metadata.version(r.name) != pin(r)}
    assert not wrong, "run `make env`"


def test_installed_torch_is_what_is_pinned() -> None:
    (pinned,) = requirements("torch.txt")
    assert torch.__version__.split("+")[0] == pin(pinned)
    assert pinned.name not in {r.name for r in requirements("lowrank.lock")}


def test_the_lock_holds_all_that_is_asked_for() -> None:
    locked = {canonicalize_name(r.name): r for r in requirements("lowrank.lock")}
    for asked in requirements("lowrank.in"):
        assert asked.specifier.contains(pin(locked[canonicalize_name(asked.name)])), asked


def test_every_pin_has_a_hash() -> None:
    blocks = re.split(r"^(?=[a-z])", (ROOT / "envs" / "lowrank.lock").read_text(), flags=re.MULTILINE)
    assert not [block for block in blocks if re.match(r"[a-z]", block) and "--hash=sha256:" not in block]


def test_a_version_stands_in_envs_only() -> None:
    names = {r.name for r in [*requirements("torch.txt"), *requirements("lowrank.lock")]}
    pinned = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names)))})(\[[a-z,]+\])?\s*[=~]=\s*['\"]?\d", re.I)
    elsewhere = [p for p in tracked() if p.relative_to(ROOT).parts[0] not in {"envs", "resources", "benchmarks"}]
    found = {name: match[0] for name, text in texts(elsewhere).items() if (match := pinned.search(text))}
    assert not found


def test_one_range_of_python() -> None:
    supported = SpecifierSet(pyproject()["project"]["requires-python"])
    minors = [f"3.{minor}" for minor in range(30) if supported.contains(f"3.{minor}.5")]
    low, high = minors[0], minors[-1]
    install = (ROOT / "envs" / "install").read_text()
    after = f"3, {int(high.split('.')[1]) + 1}"
    assert f"({low.replace('.', ', ')}) <= sys.version_info < ({after})" in install
    assert f"from {low} to {high}" in install
    assert " ".join(f"python{minor}" for minor in minors) + " python3}" in install
    assert f"--python-version {low} " in (ROOT / "Makefile").read_text()
    assert pyproject()["tool"]["mypy"]["python_version"] == low
    assert pyproject()["tool"]["ruff"]["target-version"] == "py" + low.replace(".", "")


@pytest.mark.parametrize("name", ["results", "reports", "work", "logs", "smoke", ".venv", ".snakemake", ".lowrank"])
def test_git_ignores_outputs(name: str) -> None:
    assert subprocess.run(["git", "check-ignore", "-q", f"{name}/any"], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", ["resources/downloads/x/y", "resources/prepared/x/y"])
def test_git_ignores_fetched_data(name: str) -> None:
    assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", ["resources/cards/data/x.yaml", "workflow/report/x.rst", "lowrank/report/x.py"])
def test_git_keeps_sources(name: str) -> None:
    assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT, check=False).returncode == 1


def test_pages_name_make_targets_that_exist() -> None:
    pages = [path for path in tracked() if path.suffix == ".md" or path.parent.name == ".ci"]
    for name, text in texts(pages).items():
        named = set(re.findall(r"(?:^|`| {4})make ([a-z][a-z-]*)(?= |`|$)", text, re.MULTILINE))
        assert named <= MAKE_TARGETS, name


def test_the_project_stands_alone() -> None:
    """No committed file names a folder of the machine it was written on. (The pattern does not match itself.)"""
    private = re.compile(r"/w[o]rk/\.?[a-z]+|/r[o]ot/|/home/[a-z]+/")
    assert not {name: found[0] for name, text in texts(tracked()).items() if (found := private.search(text))}


def test_tests_use_one_thread() -> None:
    assert torch.get_num_threads() == 1


def test_conda_gets_the_same_packages(tmp_path: Path) -> None:
    """Its script, with an interpreter and an installer that only write down how they were called."""
    home = tmp_path / "env"
    (home / "bin").mkdir(parents=True)
    for name in ("python", "uv"):
        stub = home / "bin" / name
        stub.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n')
        stub.chmod(0o755)
    subprocess.run(
        ["bash", ROOT / "envs" / "conda.post-deploy.sh"],
        env={"PATH": os.environ["PATH"], "CONDA_PREFIX": str(home), "LOWRANK_REPOSITORY": str(ROOT)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    torch_call, tools, packages, own, check = (tmp_path / "calls").read_text().splitlines()
    assert torch_call.endswith("-r envs/torch.txt")
    assert "--require-hashes" in tools
    assert "--require-hashes" in packages
    assert packages.endswith("-r envs/lowrank.lock")
    assert own.endswith("--editable .")
    assert check.startswith("uv --no-progress pip check")
    assert set(re.findall(r"^[a-z]+==", (home / "install.log.tools").read_text(), re.MULTILINE)) == {
        "uv==",
        "setuptools==",
    }
