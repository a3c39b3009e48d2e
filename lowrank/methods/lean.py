"""Lean: what norms and activations save for the backward pass is computed again instead, without loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import adapt, adapted, replace, strip
from lowrank.methods.adapter import AdapterPart
from lowrank.methods.layer_kinds import kind_of
from lowrank.methods.lean_modules import LeanActivation, LeanGatedMlp, LeanNorm, activation_of, look_at
from lowrank.methods.part import Part
from lowrank.methods.subtokens import KeptProduct
from lowrank.spec import PartOptions
from lowrank.targets import linear_names


class Lean(Part):
    """Saves fewer activations and learns the same: norms keep their output, activations their input.

    norm: x^ = (y - b) / w,   activation: the next layer's input is f(z), made again from z

    A layer of width d and hidden width 4 d then saves 10 d numbers a token instead of 16 d: x, q, k, v, the
    attention's output, the second norm's output, and z (4 d). The forward pass is the same, bit for bit, but
    for `gelu_new`, whose formula is one kernel here; gradients differ by the rounding of the inverse.

    What is replaced: LayerNorm, LLaMA's RMSNorm, GELU and SiLU modules, LLaMA's gated feed-forward. A norm is
    left as it is where its inverse would lose digits: |b| > 64 |w| for some feature, or half precision.
    f(z) is made again for adapters of LoRA and HiRA and, behind `full`, for the layer's own weight; another
    consumer saves it as ever. It adds nothing that trains and stands behind what does: `lora+lean`, `full+lean`.

    Source: Rota Bulo et al. 2018, "In-Place Activated BatchNorm for Memory-Optimized Training of DNNs", which
    inverts a norm from its output; here for the norms of transformers.
    Departs from: gradient checkpointing, which computes whole layers again for a third more time.
    """

    name = "lean"

    class Options(PartOptions):
        """Lean has nothing to set."""

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses a model that has nothing to replace, and a place in front of what trains."""
        for part in chain.parts[chain.parts.index(self) + 1 :]:
            if part.name == "full" or isinstance(part, AdapterPart):
                raise ConfigError(f"lean: {part.name} stands behind it; allowed: behind full and all adapters")
        if not any(_lean(module) for module in model.modules()):
            raise ConfigError(
                f"lean: {type(model).__name__} has no module that lean knows; allowed: models with LayerNorm, "
                "RMSNorm, GELU or SiLU modules"
            )

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Puts lean modules in the place of plain ones; parameters keep their names."""
        self._model = model
        self.unmerge(model)

    def unmerge(self, model: nn.Module) -> None:
        """The same as attaching: there is nothing to take out of a weight."""
        for plain in list(model.modules()):
            lean = _lean(plain)
            if lean is not None:
                replace(model, plain, lean)
        self._norms = [module for module in model.modules() if isinstance(module, LeanNorm)]
        look_at(self._norms)
        for name in linear_names(model, head=False):
            layer = model.get_submodule(name)
            weight = getattr(getattr(layer, "base", layer), "weight", None)
            if kind_of(name) == "down" and isinstance(weight, nn.Parameter) and weight.requires_grad:
                wrapper = adapt(model, name)
                if wrapper.base_product is None:
                    wrapper.base_product = KeptProduct(wrapper)

    def stack(self, members: Sequence[Part], model: nn.Module) -> Part:
        """Nothing to do: what it replaces is shared."""
        return self

    def before_step(self, micro_batches: Sequence[Mapping[str, Tensor]], step: int) -> None:
        """Looks again at the norms that train, which may have moved to where they cannot be inverted."""
        look_at([norm for norm in self._norms if any(p.requires_grad for p in norm.parameters())])

    def merge(self, model: nn.Module) -> None:
        """Puts the plain modules back."""
        for module in list(model.modules()):
            if isinstance(module, LeanNorm | LeanActivation | LeanGatedMlp):
                (plain,) = module.plain
                plain._parameters.update(module._parameters)
                plain._modules.update(module._modules)
                plain.train(module.training)
                replace(model, module, plain)
        for _, layer in adapted(model):
            if isinstance(layer.base_product, KeptProduct) and layer.keep is None:
                layer.base_product = None
        strip(model)


def _lean(module: nn.Module) -> nn.Module | None:
    """The lean form of a plain module, or None where there is none."""
    # By name, since importing the model's own module costs a second of every start.
    kind = type(module).__name__
    if isinstance(module, nn.LayerNorm):
        affine = module.elementwise_affine and len(module.normalized_shape) == 1
        return LeanNorm(module) if affine else None
    if kind == "LlamaRMSNorm":
        return LeanNorm(module)
    if kind == "LlamaMLP" and activation_of(module.get_submodule("act_fn")) is nn.functional.silu:
        return LeanGatedMlp(module)
    function = activation_of(module)
    return None if function is None else LeanActivation(module, function)
