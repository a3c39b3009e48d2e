"""The methods on a model of one's own: attach, train, merge, save, load.

`import lowrank` offers these functions; nothing of torch is imported before one of them is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lowrank import registry
from lowrank.errors import ConfigError, IntegrityError
from lowrank.files import check_seal, read_json, replacing_folder, seal, write_json
from lowrank.methods.chain import Chain, attached_chain
from lowrank.methods.rollback import undone_on_failure
from lowrank.spec import PartOptions
from lowrank.strict import parse, suggest

WEIGHTS, STATE, METHOD = "weights.safetensors", "state.safetensors", "chain.json"
FORMAT = 1

Method = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""`"nf4+lora"`, `{"part": "lora", "rank": 8}`, or a list of such entries."""


def attach(model: nn.Module, method: Method, /, *, seed: int = 0, **options: Any) -> Chain:
    """Attaches a method to a model, in place.

    The model is frozen, and then the parts unfreeze what they train. Where a part refuses, the model is as
    it was.

    Args:
        model: any module; transformers models also have a head and a vocabulary projection, which are told apart.
        method: the parts, in order: `"nf4+lora"`, or a list of entries such as `{"part": "lora", "rank": 8}`.
        seed: decides every draw of the parts.
        options: each goes to the one part that has it.

    Returns:
        The chain, whose hooks a training loop calls; see `docs/use.md`.

    Raises:
        ConfigError: an unknown part or option, an option of several parts, or a method that a part refuses.
    """
    return Chain.build(_records(method, options)).attach(model, seed)


def merge(model: nn.Module) -> nn.Module:
    """Folds what is attached into plain modules, in place, and returns the model.

    The chain keeps what `unmerge` needs until another is attached.

    Raises:
        ConfigError: nothing is attached, or it is merged already.
    """
    return _chain(model).merge()


def unmerge(model: nn.Module) -> nn.Module:
    """Takes out again what `merge` folded in, in place, and returns the model.

    Raises:
        ConfigError: nothing was merged, or a part cannot be taken out.
    """
    return _chain(model).unmerge()


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, each once, as an optimizer takes them.

    Raises:
        ConfigError: nothing is attached.
    """
    return list(_chain(model).trainable().values())


def save(model: nn.Module, folder: str | Path) -> Path:
    """Writes what differs from the base, the method and the state of its parts, in one step.

    `weights.safetensors`, `state.safetensors`, `chain.json`, and a manifest with the SHA-256 of each. A folder
    that is there is replaced when the new one is whole.

    Raises:
        ConfigError: nothing is attached, or it is merged: then the model is a plain one, saved as any other.
    """
    chain = _chain(model)
    if chain.merged:
        raise ConfigError(f"chain {chain.name}: merged, so nothing is left to save apart; allowed: before merge")
    state = chain.state_dict()
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    entries = [{"part": p.name, **p.options.model_dump(mode="json", exclude_defaults=True)} for p in chain.parts]
    path = Path(folder)
    with replacing_folder(path) as temporary:
        save_file(_plain(chain.changed()), temporary / WEIGHTS)
        save_file(_plain(tensors), temporary / STATE)
        values = {key: value for key, value in state.items() if key not in tensors}
        write_json(temporary / METHOD, {"chain": entries, "seed": chain.seed, "state": values})
        seal(temporary, {"format": FORMAT, "model": type(model).__name__, "torch": torch.__version__})
    return path


def load(model: nn.Module, folder: str | Path) -> Chain:
    """Attaches what `save` wrote to a fresh copy of the base, in place; training can go on from it.

    Where that fails, the model is as it was.

    Returns:
        The chain.

    Raises:
        IntegrityError: a file is missing, damaged or of another model.
        ConfigError: the model has a chain attached, or a part refuses it.
    """
    path = Path(folder)
    manifest = check_seal(path)
    if manifest.get("format") != FORMAT or manifest.get("model") != type(model).__name__:
        raise IntegrityError(
            f"{path}: format {manifest.get('format')!r} for a {manifest.get('model')}, the model is a "
            f"{type(model).__name__}; allowed: format {FORMAT} and the class it was saved from"
        )
    saved = read_json(path / METHOD)
    try:
        weights, tensors = load_file(path / WEIGHTS), load_file(path / STATE)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{path}: tensors cannot be read ({error})") from None
    with undone_on_failure(model):
        chain = attach(model, saved["chain"], seed=saved["seed"])
        chain.load_changed(weights, str(path / WEIGHTS))
        chain.load_state_dict({**saved["state"], **tensors})
    return chain


VELORA_NAMES = {"num_groups": "num_groups", "init_type": "init", "layers": "layers", "scale": "scale"}
"""The VeLoRA document's keys -> our options."""


def set_layers(model: nn.Module, method: str, config: Mapping[str, Any]) -> Chain:
    """The VeLoRA document's own call: `set_layers(model, "velora+full", {"rank": 1, "num_groups": 32, ...})`.

    Args:
        model: as for `attach`.
        method: `velora+` and what trains: full, lora, hira.
        config: rank (1), num_groups, init_type, layers, scale.

    Raises:
        ConfigError: a rank other than 1, an unknown key, or what `attach` refuses.
    """
    beside = method.removeprefix("velora+").removesuffix("+velora")
    if beside == method or "+" in beside:
        raise ConfigError(f"set_layers: method {method!r}; allowed: velora+full, velora+lora, velora+hira")
    for key in config:
        if key not in {"rank", *VELORA_NAMES}:
            raise ConfigError(f"set_layers: unknown key {key!r}{suggest(key, ['rank', *VELORA_NAMES])}")
    if config.get("rank", 1) != 1:
        raise ConfigError(
            f"set_layers: rank {config['rank']!r}; allowed: 1, since the vector of a layer is an average, and another "
            "rank would need another initialisation"
        )
    options = {VELORA_NAMES[key]: value for key, value in config.items() if key != "rank"}
    return attach(model, [beside, {"part": "velora", **options}])


def _chain(model: nn.Module) -> Chain:
    chain = attached_chain(model)
    if chain is None:
        raise ConfigError(f"{type(model).__name__}: no method is attached; call lowrank.attach(model, ...) first")
    return chain


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors takes them: contiguous, on the CPU, no two in one storage."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _records(method: Method, options: Mapping[str, Any]) -> list[PartOptions]:
    """The options records of a chain, each loose option given to the one part that has it."""
    if isinstance(method, str):
        method = method.split("+")
    listed = [method] if isinstance(method, Mapping) else list(method)
    if not listed:
        raise ConfigError('a method names at least one part, as in "lora" or [{"part": "lora", "rank": 8}]')
    entries = [_entry(entry) for entry in listed]
    fields = [registry.part(entry["part"]).Options.model_fields for entry in entries]
    for option, value in options.items():
        takers = [entry for entry, known in zip(entries, fields, strict=True) if option in known]
        shown = " and ".join(entry["part"] for entry in takers)
        if not takers:
            known = {name for some in fields for name in some}
            parts = "+".join(entry["part"] for entry in entries)
            raise ConfigError(f"{parts}: unknown option {option!r}{suggest(option, known)}")
        if len(takers) > 1:
            raise ConfigError(
                f"option {option!r} belongs to {shown}; say whose it is, as in "
                f'[{{"part": "{takers[0]["part"]}", "{option}": {value!r}}}, ...]'
            )
        if option in takers[0]:
            raise ConfigError(f"option {option!r} of {shown} is given twice: {takers[0][option]!r} and {value!r}")
        takers[0][option] = value
    return [
        parse(registry.part(entry["part"]).Options, {k: v for k, v in entry.items() if k != "part"}, entry["part"])
        for entry in entries
    ]


def _entry(entry: object) -> dict[str, Any]:
    found = {"part": entry.strip()} if isinstance(entry, str) else entry
    if not isinstance(found, Mapping) or "part" not in found:
        raise ConfigError(f'an entry of a method names its part, as in {{"part": "lora", "rank": 8}}; found {entry!r}')
    registry.part(found["part"])
    return dict(found)
