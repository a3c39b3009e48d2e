"""Where a result came from: versions, machine, commit. It lies in manifests, never in a path."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lowrank.files import REPOSITORY, sha256_file
from lowrank.measure import device_facts

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "bitsandbytes")
"""Whose versions may move a number."""

LOCK = REPOSITORY / "envs" / "lowrank.lock"


@functools.cache
def provenance() -> dict[str, Any]:
    """Package versions, Python, environment lock, git commit and device, as plain JSON values."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "environment_lock": sha256_file(LOCK)[:12] if LOCK.is_file() else None,
        "commit": _commit(REPOSITORY),
        "device": device_facts(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(folder: Path) -> str | None:
    """The commit that is checked out, with `+changes` where the tree differs from it."""
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()
