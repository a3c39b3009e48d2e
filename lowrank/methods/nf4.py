"""NF4: the base weights of the targets are stored in 4 bits, which makes LoRA into QLoRA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import replace
from lowrank.methods.adapter import Names
from lowrank.methods.drift import Drift
from lowrank.methods.nf4_linear import Nf4Linear
from lowrank.methods.part import Part
from lowrank.spec import PartOptions
from lowrank.targets import ALL_LINEAR, is_transposed, select

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Nf4(Part):
    """Stores the weights of the targets in 4-bit NormalFloat; they are frozen.

    W[i] ~ q[code[i]] c[i // 64], where q is the 16-value NF4 codebook and c the block's max |W|. With
    double quantisation c ~ mean(c) + m[code8[j]] s[j // 256]: 4 + 8/64 + 32/(64 * 256) = 4.127 bits
    per weight, instead of 4.5.

    The codes follow from the base and are not saved with a run. `drift` tells, for each layer, how far the
    stored weight is from the original one. Merging adds the adapters to the dequantised weight and gives
    plain layers again; that differs from merging into the original base by the same drift.

    Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", eq. 5 and 6.
    """

    name = "nf4"

    class Options(PartOptions):
        """Which layers are quantised, and how the product is computed."""

        targets: Names = (ALL_LINEAR,)
        """`all-linear` (every linear layer of the trunk), or name patterns; see `lowrank.targets`."""
        double_quant: bool = True
        """Quantise the block constants too."""
        compute_dtype: Literal["input", "float32", "bfloat16", "float16"] = "input"
        """Type of the product: that of the input (under autocast, autocast's), or a given one."""
        requantize: bool = False
        """Merging quantises the sum again, so that the result stays in 4 bits and drifts further."""

    def setup(self) -> None:
        """Starts with nothing stored."""
        self.drift: dict[str, Drift] = {}

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses layers that cannot be stored so, and chains that would train the base."""
        if chain.before(self):
            raise ConfigError(
                f"nf4: stands behind {chain.before(self)[-1].name!r}; allowed: first, since it is the base"
            )
        if "full" in chain:
            raise ConfigError("nf4: a quantised base cannot train, so 'full' has no place behind it; use an adapter")
        owners: dict[int, list[str]] = {}
        for name, owner in model.named_modules():
            for parameter in owner._parameters.values():
                owners.setdefault(id(parameter), []).append(name)
        for name in select(model, self.options.targets):
            module: Any = model.get_submodule(name)
            if type(module) is not nn.Linear and not is_transposed(module):
                raise ConfigError(f"nf4: {name!r} is a {type(module).__name__}; allowed: Linear, Conv1D")
            if module.weight.dtype not in DTYPES.values():
                raise ConfigError(f"nf4: {name!r} holds {module.weight.dtype}; allowed: {', '.join(DTYPES)}")
            others = [other for other in owners[id(module.weight)] if other != name]
            if others:
                raise ConfigError(f"nf4: the weight of {name!r} is tied to {others[0]!r}; leave it out of the targets")

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Replaces each target by its 4-bit form; needs no randomness."""
        dtype = DTYPES.get(self.options.compute_dtype)
        for name in select(model, self.options.targets):
            module = model.get_submodule(name)
            layer = Nf4Linear(module, self.options.double_quant, dtype, self.options.requantize)
            replace(model, module, layer)
            if layer.drift is not None:
                self.drift[name] = layer.drift

    def stack(self, members: Sequence[Part], model: nn.Module) -> Part:
        """Nothing to do: the members share the codes."""
        return self

    def merge(self, model: nn.Module) -> None:
        """Puts plain layers back, with the dequantised weight and what was added to it.

        With `requantize` the layers stay in 4 bits, and `drift` is now that of the last quantisation
        against the sum it stands for.
        """
        for name, layer in list(_stored(model)):
            if not self.options.requantize:
                replace(model, layer, layer.plain())
            elif layer.drift is not None:
                self.drift[name] = layer.drift


def _stored(model: nn.Module) -> Iterator[tuple[str, Nf4Linear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Nf4Linear))
