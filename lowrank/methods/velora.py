"""VeLoRA: what is kept of a layer's input for its weight gradient is one number a sub-token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, model_validator
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import adapt, features, strip
from lowrank.methods.layer_kinds import KINDS, layers_of_kind
from lowrank.methods.micro_batches import drawing_apart
from lowrank.methods.part import Part
from lowrank.methods.subtokens import KeptProduct, StackedSubTokens, SubTokens
from lowrank.spec import PartOptions
from lowrank.strict import PositiveFloat, PositiveInt
from lowrank.targets import select

_LETTERS = {kind[0]: kind for kind in KINDS}


def _layers(value: object) -> object:
    if isinstance(value, str):
        value = list(value) if set(value) <= set(_LETTERS) else value.replace(",", " ").split()
    return tuple(_LETTERS.get(entry, entry) for entry in value) if isinstance(value, list | tuple) else value


def _counts(value: object) -> object:
    if isinstance(value, str):
        value = value.split(",")
    return value if isinstance(value, list | tuple) else (value,)


class Velora(Part):
    """Keeps, of the input of the layers it names, one number a sub-token for the backward pass.

    z = sub-tokens of x times v,   dW = scale * dY^T (z v^T)

    A token of width D is cut into G = `num_groups` sub-tokens; v is one unit vector a layer. The output, the
    gradient to x and the gradient of the bias are exact; the weight gradient is that of the input projected
    onto v, group by group. It serves whatever trains in the layer: the weight itself (`full+velora`), the
    factor A of LoRA (`lora+velora`) or HiRA's factors (`hira+velora`).

    v comes from the whole first batch, however it is cut into micro-batches, by a forward pass of its own
    under the random state that the training pass will have.

    Source: Miles et al. 2024, "VeLoRA: Memory Efficient Training using Rank-1 Sub-Token Projections", eq. 2-5.
    Departs from: roymiles/VeLoRA, which forms z v^T and a gradient per example, in float16 (`precision: float16`),
    counts padding into v, so that v depends on how a batch is padded, and keeps the batch axis in the bias
    gradient. PEFT zero-pads a D that G does not divide; here it is refused.
    """

    name = "velora"
    knobs = {"g": "groups"}

    class Options(PartOptions):
        """Layers, groups and vectors of VeLoRA."""

        layers: Annotated[tuple[str, ...], BeforeValidator(_layers)] = ("v", "down")
        """Kinds (q k v o gate up down; `vd` means `v down`), or name patterns as in `lowrank.targets`."""
        num_groups: Annotated[tuple[PositiveInt, ...], BeforeValidator(_counts)] = (32,)
        """Sub-tokens a token; one value, or one per entry of `layers`, as in `64,86`."""
        scale: PositiveFloat = 1.0
        """Factor of the weight gradient; Adam cancels it, up to eps."""
        init: Literal["batch_average_once", "batch_average", "svd", "random"] = "batch_average_once"
        """v is the mean sub-token of the first batch, or of each batch, which costs a second forward pass a step;
        the first right singular vector of the first batch; or a random direction."""
        precision: Literal["native", "float16"] = "native"
        """In which z and v are held and dW is formed; `float16` as published, also where the model is float32."""

        @model_validator(mode="after")
        def _one_or_each(self) -> Velora.Options:
            if not self.layers or len(set(self.layers)) < len(self.layers):
                raise ValueError(f"layers {self.layers} is empty or names one twice")
            if len(self.num_groups) not in (1, len(self.layers)):
                raise ValueError(
                    f"num_groups has {len(self.num_groups)} values for {len(self.layers)} layers {self.layers}; "
                    f"allowed: 1 or {len(self.layers)}"
                )
            return self

        @property
        def groups(self) -> str:
            """`num_groups` as a run's name spells it: 64_86."""
            return "_".join(map(str, self.num_groups))

    def setup(self) -> None:
        """Nothing is kept yet."""
        self._groups: dict[str, int] = {}
        self.keeps: dict[str, SubTokens] = {}
        self._mask: Tensor | None = None

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses layers that do not exist and groups that do not divide them."""
        self._chain = chain
        options = self.options
        counts = options.num_groups * (len(options.layers) if len(options.num_groups) == 1 else 1)
        for entry, groups in zip(options.layers, counts, strict=True):
            names = layers_of_kind(model, entry, "velora: layers") if entry in KINDS else select(model, entry)
            for name in names:
                width, _ = features(model.get_submodule(name))
                if width % groups:
                    divisors = ", ".join(str(d) for d in range(1, width + 1) if width % d == 0)
                    raise ConfigError(
                        f"velora: num_groups {groups} does not divide the {width} inputs of {name!r}; "
                        f"allowed: {divisors}"
                    )
                if self._groups.setdefault(name, groups) != groups:
                    raise ConfigError(f"velora: {name!r} is named twice, with {self._groups[name]} and {groups} groups")

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Tells each layer how to keep its input.

        Raises:
            ConfigError: nothing in a layer needs its input, so there is nothing to save.
        """
        self._model = model
        dtype = torch.float16 if self.options.precision == "float16" else None
        for name, groups in self._groups.items():
            keep = SubTokens(groups, adapt(model, name).in_features, self.options.scale, dtype)
            if self.options.init == "random":
                keep.vector = _unit(torch.randn(keep.size, generator=generator, dtype=torch.float64))
            self.keeps[name] = keep
        self.unmerge(model)

    def unmerge(self, model: nn.Module) -> None:
        """The layers keep their inputs as sub-tokens."""
        for name, keep in self.keeps.items():
            layer = adapt(model, name)
            trains = getattr(layer.base, "weight", None) is not None and layer.base.weight.requires_grad
            if not trains and not any(getattr(adapter, "keeps_input", False) for adapter in layer.adapters.values()):
                raise ConfigError(
                    f"velora: {name!r} has a frozen weight and no adapter whose gradient needs its input; "
                    "allowed: behind full, or layers that lora or hira in front of it adapts"
                )
            layer.keep = keep
            if trains:
                layer.base_product = KeptProduct(layer)

    def merge(self, model: nn.Module) -> None:
        """The layers keep their inputs whole again; no weight changes."""
        for name in self.keeps:
            layer = adapt(model, name)
            layer.keep = None
            if isinstance(layer.base_product, KeptProduct):
                layer.base_product = None
        strip(model)

    def before_step(self, micro_batches: Sequence[Mapping[str, Tensor]], step: int) -> None:
        """Takes the vectors from the whole batch, where it is their turn."""
        if self.options.init != "batch_average" and all(keep.vector is not None for keep in self.keeps.values()):
            return
        sums: dict[str, Tensor] = {}
        hooks = [
            adapt(self._model, name).register_forward_pre_hook(self._gather(name, keep, sums))
            for name, keep in self.keeps.items()
        ]
        try:
            with torch.no_grad(), drawing_apart(micro_batches[0]):
                for batch in micro_batches:
                    self._mask = batch.get("attention_mask")
                    self._chain.before_forward(batch, step)
                    self._model(**batch)
        finally:
            for hook in hooks:
                hook.remove()
        for name, total in sums.items():
            self.keeps[name].vector = _unit(_leading(total) if self.options.init == "svd" else total)

    def stack(self, members: Sequence[Velora], model: nn.Module) -> Velora:
        """A part like this one, whose layers keep a vector for each member."""
        whole = Velora(self.options)
        whole._chain, whole._model = self._chain, model
        for name in self.keeps:
            keep = StackedSubTokens([member.keeps[name] for member in members])
            whole.keeps[name] = adapt(model, name).keep = keep
        return whole

    def _gather(self, name: str, keep: SubTokens, sums: dict[str, Tensor]) -> Callable[..., None]:
        """A hook that adds the sub-tokens of a layer's input, or their outer products, to `sums`."""

        def gather(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            if self._mask is not None and self._mask.shape == x.shape[:-1]:
                x = x * self._mask[..., None].to(x.dtype)
            tokens = keep.split(x)  # (N G, s), in a stack (K, N G, s)
            if self.options.init == "svd":
                total = tokens.double().mT @ tokens.double()
            else:
                total = tokens.sum(-2, dtype=torch.float64)  # so that no cut of the batch changes a bit of v
            sums[name] = sums[name] + total if name in sums else total

        return gather

    def state_dict(self) -> dict[str, Any]:
        """The vectors: layer -> v (s,)."""
        return {name: keep.vector for name, keep in self.keeps.items() if keep.vector is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts the vectors back."""
        for name, keep in self.keeps.items():
            keep.vector = state.get(name)


def _unit(direction: Tensor) -> Tensor:
    """The direction (..., s) at length 1 in float32; the constant one where all sub-tokens sum to 0, as in PEFT."""
    norm = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    direction = torch.where(norm > 0, direction / norm, torch.full_like(direction, direction.shape[-1] ** -0.5))
    return direction.float()


def _leading(gram: Tensor) -> Tensor:
    """The first right singular vector of the sub-tokens with that Gram matrix (..., s, s), its sum not negative."""
    vector = torch.linalg.eigh(gram).eigenvectors[..., -1]
    return torch.where(vector.sum(-1, keepdim=True) < 0, -vector, vector)
