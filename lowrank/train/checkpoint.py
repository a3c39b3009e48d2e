"""Checkpoints: a folder with tensors, JSON and a manifest, whole or not there.

A checkpoint is written to a temporary folder, fsynced and renamed; its manifest, with the SHA-256 of
each file, is written last. The newest one whose hashes hold wins. Only safetensors and JSON, no pickle.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowrank.console import say
from lowrank.errors import IntegrityError
from lowrank.files import check_seal, read_json, replacing_folder, seal, write_json

KEPT = 2
"""How many checkpoints stay: the newest, and the one before in case the newest is damaged."""

TENSORS, VALUES = "state.safetensors", "state.json"


def save(folder: Path, step: int, state: dict[str, Any], facts: dict[str, Any]) -> Path:
    """Writes `folder/step-00000040`, then removes all but the newest `KEPT`.

    Args:
        folder: the run's checkpoints.
        step: optimizer steps done.
        state: a tree of dicts, lists, tensors and JSON values.
        facts: what must be the same when it is loaded (run, code digest, torch version).

    Raises:
        LowrankError: it cannot be written; the checkpoints before it are intact.
    """
    path = folder / f"step-{step:08d}"
    with replacing_folder(path) as temporary:
        tensors: dict[str, Tensor] = {}
        write_json(temporary / VALUES, _flatten(state, "", tensors))
        write_tensors(temporary / TENSORS, tensors)
        seal(temporary, {**facts, "step": step})
    for old in _folders(folder)[KEPT:]:
        shutil.rmtree(old)
    return path


def load_newest(folder: Path, facts: dict[str, Any], up_to: int | None = None) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is whole and belongs here, of at most `up_to` steps; or None.

    A damaged checkpoint is passed over, aloud; so is one made by other code or another torch, since
    going on from it would give a result that no single version of the code produces.
    """
    for path in _folders(folder):
        try:
            manifest = check_seal(path)
            values = read_json(path / VALUES)
            tensors = load_file(path / TENSORS)
        except (IntegrityError, OSError, SafetensorError) as error:
            say(f"checkpoint passed over: {error}")
            continue
        if up_to is not None and manifest["step"] > up_to:
            continue
        other = {key: manifest.get(key) for key, value in facts.items() if manifest.get(key) != value}
        if other:
            say(f"checkpoint passed over: {path} was made with {other}, this is { ({k: facts[k] for k in other}) }")
            continue
        state: dict[str, Any] = _unflatten(values, tensors)
        return state
    return None


def _folders(folder: Path) -> list[Path]:
    """Newest first; the temporary folder of a save that was killed starts with a dot and is no match."""
    return sorted(folder.glob("step-*"), reverse=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as safetensors, each whole: those that share their memory are written apart.

    Raises:
        OSError: it cannot be written.
    """
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        apart[name] = plain.clone() if address in seen else plain  # bitsandbytes' states share their code tables
        seen.add(address)
    try:
        save_file(apart, path)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON with a reference in place of each tensor; dicts as pairs, so that integer keys survive."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _flatten(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    return value


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unflatten(item, tensors) for key, item in value["dict"]}
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    return value


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Puts an optimizer's state back bit for bit.

    torch casts a state to the dtype of its parameter, which would round float32 states of bfloat16
    parameters; such a state is put back as it was saved.

    Args:
        optimizer: over the same parameters, in the same order.
        saved: its `state_dict()`.
    """
    optimizer.load_state_dict(dict(saved))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in saved["state"].items():
        state = optimizer.state[parameters[index]]
        for key, value in values.items():
            if isinstance(value, Tensor) and state[key].dtype != value.dtype:
                state[key] = value.to(state[key].device)


def rng_state() -> dict[str, Tensor]:
    """The state of every random number generator that training may draw from."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():  # pragma: no cover - needs a GPU
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Puts back what `rng_state` gave, as far as there are such generators here."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():  # pragma: no cover - needs a GPU
        torch.cuda.set_rng_state(state["cuda"])
