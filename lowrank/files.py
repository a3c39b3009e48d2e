"""Reading and writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lowrank.errors import IntegrityError, LowrankError

REPOSITORY = Path(__file__).resolve().parent.parent
"""Where the committed cards, studies and published numbers lie; outputs go below the current folder."""

MANIFEST = "manifest.json"

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
"""What a disk or its rights refuse; anything else that goes wrong inside a block is not about its path."""


def digest_file(path: Path, kind: str) -> str:
    """The digest of a file's bytes as hex digits; `kind` is a name that hashlib knows."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, kind).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    return digest_file(path, "sha256")


def canonical_json(value: object) -> str:
    """The one spelling of a JSON value that hashes are taken of: sorted keys, no spaces, no nan."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def read_json(path: Path) -> Any:
    """Loads a JSON file.

    Raises:
        IntegrityError: missing, truncated or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IntegrityError(f"{path}: no such file") from None
    except ValueError as error:
        raise IntegrityError(f"{path}: not valid JSON ({error})") from None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says in one sentence that `path` cannot be written: a full disk, a folder that is read only."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise LowrankError(f"{path}: cannot be written: {error.strerror}; what was there before is intact") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that takes its place, fsynced, when the block ends well.

    Raises:
        LowrankError: the disk is full, or its rights refuse.
    """
    with _writing(path), _replacing(path) as temporary:
        yield temporary


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file in one step, keys sorted, made for reading."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path` that takes its place when the block ends well.

    Every file is fsynced before the rename, so a folder that has its name is whole.

    Raises:
        LowrankError: the disk is full, or its rights refuse.
    """
    with _writing(path), _replacing_folder(path) as temporary:
        yield temporary


@contextlib.contextmanager
def _replacing_folder(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        _fsync(temporary)
        if path.exists():
            # A folder cannot be renamed over one that holds files: move the old one aside first.
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, old / path.name)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def drop_leftovers(path: Path) -> None:
    """Removes what processes that were killed left of `path`; only for who knows that nobody else writes it."""
    for left in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(left)


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Holds `path` for this process alone while the block runs; a crash lets go of it.

    The holder may remove the file or its folder: whoever comes next makes a new one.

    Args:
        path: the lock file.
        busy: what to say where another process holds it.

    Raises:
        LowrankError: another process holds it.
    """
    while True:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("w")
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LowrankError(busy) from None
            if not _is_open_at(handle.fileno(), path):
                continue  # its holder removed it between our opening and our locking
            yield
            return


def _is_open_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_files(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of each named file of a folder, for its manifest."""
    return {name: sha256_file(folder / name) for name in sorted(names)}


def seal(folder: Path, facts: Mapping[str, object]) -> None:
    """Writes the manifest of a folder, last: `facts` plus the SHA-256 of every file in it."""
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST]
    write_json(folder / MANIFEST, {**facts, "files": hash_files(folder, names)})


def check_seal(folder: Path) -> dict[str, Any]:
    """Re-hashes the files of a sealed folder and returns its manifest.

    Raises:
        IntegrityError: no manifest or a damaged one, a file missing, or one whose bytes changed.
    """
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise IntegrityError(f"{folder / MANIFEST}: names no files, so it is damaged")
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise IntegrityError(f"{file}: named in {MANIFEST}, but not there")
        found = sha256_file(file)
        if found != expected:
            raise IntegrityError(f"{file}: sha256 is {found}, {MANIFEST} says {expected}")
    return manifest
