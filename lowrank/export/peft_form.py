"""What of a chain PEFT can hold: an adapter configuration, and where each trained tensor goes.

The adapted model decides, not the names of the parts: a chain has a PEFT form when all that differs from the
base is LoRA's or HiRA's factors, biases, and whole modules outside the adapted layers. So whatever only
guides training (pruning, SparseLoRA, an optimizer) needs no entry here. Nothing here can change a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowrank.errors import ConfigError
from lowrank.methods.adapted import AdaptedLinear, adapted
from lowrank.methods.chain import Chain
from lowrank.methods.nf4_linear import Nf4Linear
from lowrank.targets import head_names

BIASES = {"none": "none", "all": "all", "adapted": "lora_only"}
"""Our option `bias` -> PEFT's."""

_NOT_IN_PEFT = {"svd"}
"""Ways of VeLoRA to find its vectors that PEFT does not have."""


@dataclass(frozen=True)
class PeftForm:
    """A chain in PEFT's terms.

    Attributes:
        config: of the adapter.
        targets: dotted names of the adapted layers.
        tensors: name of a parameter in the PEFT model -> its trained value.
        head_is_adapted: whether the head's own weights stand in the base.
        quantization: settings of bitsandbytes for the base, or None.
        notes: what PEFT's form does not carry.
    """

    config: Any
    targets: tuple[str, ...]
    tensors: dict[str, Tensor]
    head_is_adapted: bool
    quantization: dict[str, Any] | None
    notes: tuple[str, ...]


@dataclass
class _Parts:
    """What is gathered of the adapted model."""

    saved: list[str] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def peft_form(model: nn.Module, chain: Chain, task: str) -> PeftForm:
    """The PEFT form of a trained chain.

    Args:
        model: with `chain` attached and its trained weights.
        chain: the method.
        task: of the run.

    Raises:
        ConfigError: PEFT has no form for it; says why.
    """
    layers = dict(adapted(model))
    kinds = {kind for layer in layers.values() for kind in layer.adapters}
    if len(kinds) != 1 or not kinds <= _CONFIGS.keys():
        found = f"adapters of kind {', '.join(sorted(kinds))}" if kinds else "no adapters"
        raise _no_form(chain, f"it has {found}, and PEFT's are {' or '.join(_CONFIGS)}, one of them alone")
    (kind,) = kinds
    bias = chain[kind].options.bias
    gathered = _Parts()
    heads = head_names(model)
    head_layers = [name for name in layers if any(name == head or name.startswith(f"{head}.") for head in heads)]
    if not head_layers:
        # Drawn from the run's seed, so no base that others load has it, whether it was trained or not.
        gathered.saved += [name for head in heads for name in _holders(model, head)]
    for name, tensor in chain.changed().items():
        _place(name, tensor, model, chain, kind, bias, gathered)
    for name in dict.fromkeys(gathered.saved):
        for key, tensor in model.get_submodule(name).named_parameters():
            gathered.tensors[f"{name}.modules_to_save.default.{key}"] = tensor.detach()
    config = _CONFIGS[kind](chain, layers, gathered.notes)
    config.target_modules = set(layers)
    config.modules_to_save = list(dict.fromkeys(gathered.saved)) or None
    config.fan_in_fan_out = all(isinstance(layer.base, Conv1D) for layer in layers.values())
    if getattr(model, "main_input_name", None) == "input_ids" and not head_layers:
        config.task_type = "SEQ_CLS" if task == "classification" else "CAUSAL_LM"
    return PeftForm(
        config=config,
        targets=tuple(layers),
        tensors=gathered.tensors,
        head_is_adapted=bool(head_layers),
        quantization=_quantization(model),
        notes=tuple(gathered.notes),
    )


def _place(name: str, tensor: Tensor, model: nn.Module, chain: Chain, kind: str, bias: str, gathered: _Parts) -> None:
    """Notes where PEFT keeps one changed tensor."""
    marker = f".adapters.{kind}."
    if marker in name:
        layer, factor = name.split(marker)
        gathered.tensors[f"{layer}.{_FACTORS[kind].format(factor)}"] = tensor
        return
    owner, _, leaf = name.rpartition(".")
    if owner.endswith(".base"):
        if leaf != "bias":
            raise _no_form(chain, f"{name!r} differs from the base, and PEFT stores adapters only")
        if kind != "lora":
            raise _no_form(chain, f"the bias {name!r} trained, and PEFT's {kind} trains none")
        gathered.tensors[f"{owner.removesuffix('.base')}.base_layer.bias"] = tensor
    elif leaf == "bias" and bias == "all" and kind == "lora" and owner not in gathered.saved:
        gathered.tensors[name] = tensor
    else:
        parameter = model.get_parameter(name)
        for other, module in model.named_modules():
            if any(held is parameter for held in module._parameters.values()):
                if not other or any(isinstance(inner, AdaptedLinear) for inner in module.modules()):
                    raise _no_form(chain, f"{name!r} trained, and its module holds adapted layers")
                gathered.saved.append(other)


def _holders(model: nn.Module, head: str) -> Iterator[str]:
    """The modules of a head that hold parameters themselves."""
    for name, module in model.get_submodule(head).named_modules(prefix=head):
        if module._parameters:
            yield name


def _lora(chain: Chain, layers: dict[str, AdaptedLinear], notes: list[str]) -> Any:
    from peft import LoraConfig

    options: Any = chain["lora"].options
    first: Any = next(iter(layers.values())).adapters["lora"]
    return LoraConfig(
        r=options.rank,
        lora_alpha=first.scaling * options.rank,
        lora_dropout=options.dropout,
        bias=BIASES[options.bias],
        velora_config=_velora(chain, layers, notes),
    )


def _velora(chain: Chain, layers: dict[str, AdaptedLinear], notes: list[str]) -> Any:
    """PEFT's VeLoRA, where all layers keep their input in one way that PEFT knows; else None and a note."""
    from peft import VeloraConfig

    keeps = [layer.keep for layer in layers.values() if layer.keep is not None]
    if not keeps:
        return None
    init: str = chain["velora"].options.init
    ways = {(keep.groups, keep.scale, keep.dtype) for keep in keeps}
    coded = any(isinstance(layer.base, Nf4Linear) for layer in layers.values())
    if len(keeps) < len(layers) or len(ways) > 1 or keeps[0].dtype is not None or init in _NOT_IN_PEFT or coded:
        notes.append(
            "VeLoRA acted in training in a way that PEFT has no setting for (it has one for all layers of an "
            "adapter, over a base in floating point), so the configuration leaves it out. The function is the same."
        )
        return None
    notes.append("VeLoRA's vectors are not kept with a run; training that goes on takes new ones.")
    return VeloraConfig(num_groups=keeps[0].groups, scale=keeps[0].scale, init_type=init)


def _hira(chain: Chain, layers: dict[str, AdaptedLinear], notes: list[str]) -> Any:
    from peft import HiraConfig

    options: Any = chain["hira"].options
    if options.form != "residual":
        raise _no_form(chain, f"hira's form is {options.form!r}, and PEFT's HiRA is 'residual'")
    if any(isinstance(layer.base, Nf4Linear) for layer in layers.values()):
        raise _no_form(chain, "hira multiplies a weight stored in 4 bits, which PEFT's does not")
    if any(layer.keep is not None for layer in layers.values()):
        notes.append("VeLoRA acted in training; PEFT's HiRA has none. The function is the same.")
    return HiraConfig(r=options.rank)


_CONFIGS: dict[str, Callable[[Chain, dict[str, AdaptedLinear], list[str]], Any]] = {"lora": _lora, "hira": _hira}
_FACTORS = {"lora": "{}.default.weight", "hira": "{}.default"}


def _quantization(model: nn.Module) -> dict[str, Any] | None:
    """What `transformers.BitsAndBytesConfig` takes to store the base as the run did."""
    stored = [module for module in model.modules() if isinstance(module, Nf4Linear)]
    if not stored:
        return None
    dtype = stored[0].compute_dtype or stored[0].dtype
    plain = [
        name.removesuffix(".base") for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    ]
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": stored[0].double_quant,
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
        "llm_int8_skip_modules": plain,
    }


def _no_form(chain: Chain, why: str) -> ConfigError:
    return ConfigError(f"chain {chain.name} has no PEFT form: {why}; allowed: `--to merged`")
