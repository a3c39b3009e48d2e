"""Published files: wheels, downloaded by pip, read as zips and never installed, and plain addresses."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lowrank.errors import IntegrityError, UnavailableError
from lowrank.sources import WheelSource


def download_wheel(card: str, source: WheelSource, stem: str, folder: Path) -> Path:
    """Downloads exactly one wheel with pip, which checks its hash. `PIP_*` variables name another index.

    Raises:
        UnavailableError: pip cannot get it.
        IntegrityError: the index offers other bytes; names both sums.
    """
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(folder), "-r", str(requirement)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    moved = re.search(r"Expected sha256 (\w+)\s+Got\s+(\w+)", result.stderr)
    if moved:
        raise IntegrityError(
            f"card {card!r}: sha256 of {source.package} {source.version} is {moved[2]}, the card says {moved[1]}"
        )
    found = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not found:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")] or [f"{result.stderr}?"]
        raise UnavailableError(
            f"card {card!r}: {source.package} {source.version} cannot be downloaded by pip "
            f"({errors[-1].removeprefix('ERROR: ').strip()}); where there is no network, put {stem}*.whl "
            "into a folder and set LOWRANK_FILES to that folder"
        )
    return found[0]


def download(card: str, url: str, file: Path) -> None:
    """Writes what lies at an address into a file, piece by piece.

    Raises:
        UnavailableError: the address does not answer, or the connection breaks.
    """
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, file.open("wb") as plain:
            shutil.copyfileobj(answer, plain)
            length = answer.headers.get("Content-Length")
            if length is not None and plain.tell() != int(length):
                raise OSError(f"{plain.tell()} of {length} bytes arrived")
    except OSError as error:  # urllib's errors are OSErrors
        raise UnavailableError(
            f"card {card!r}: {url} cannot be fetched ({error}); where there is no network, put {file.name} "
            "into a folder and set LOWRANK_FILES to that folder"
        ) from error


def extract(wheel: Path, members: Sequence[str], folder: Path) -> None:
    """Copies members of a wheel into a folder, each under its last name.

    Raises:
        IntegrityError: a name in the archive leaves its folder, or a member is not there.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                path = PurePosixPath(name.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts:
                    raise IntegrityError(f"{wheel}: member {name!r} leaves its folder; the archive is refused")
            for member in members:
                if member not in archive.namelist():
                    raise IntegrityError(f"{wheel}: no member {member!r}")
                with archive.open(member) as packed, (folder / PurePosixPath(member).name).open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
    except zipfile.BadZipFile as error:
        raise IntegrityError(f"{wheel}: not a readable archive ({error})") from None
