"""LTE, LoRA-the-Explorer: parallel LoRA heads that train on their own data and meet every few steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import AdaptedLinear, adapted, add_to_weight, untie
from lowrank.methods.adapter import AdapterPart
from lowrank.methods.lora import add_low_rank
from lowrank.methods.merging import base_weights, refuse_coded_base
from lowrank.methods.mhlora import Heads, HeadsOptions, side_by_side, sum_of_products
from lowrank.methods.shares import add_shares
from lowrank.strict import PositiveInt


class Lte(AdapterPart):
    """Adds N heads to each target, each of which sees its own share of the batch.

    Between merges head n sees W + D_n - P_n, with D_n = (alpha / rank) B_n A_n and P_n the D_n of the last
    merge. Every `merge_every` steps

    W <- W + mean_n(D_n - P_n),   P_n <- D_n

    so that right after it every head sees W. A, B and the optimizer's state are kept ("reset-less"). The
    weight is stored once: the heads differ in their factors and in those of P_n, which are buffers.

    Which example goes to which head: example i of a micro-batch to head i mod N. So a batch gives the same
    gradients however it is cut into micro-batches, as long as N divides each of them.

    What a head's gradient is: the loop's loss is the mean over the whole batch, so head n gets 1 / N of the
    gradient of the mean over its own examples, as in the published code. The paper's heads are workers with
    a loss of their own; under Adam the factor N falls out (up to eps), under SGD it belongs to lr. With
    N = 1 this is LoRA, whatever `merge_every` is, up to the rounding of W + D - P.

    Evaluation sees the weight that a merge would give now. A target that shares its weight with an embedding
    gets its own copy first, since merging into the projection must not change the embedding.

    Source: Huh et al. 2024, "Training Neural Networks from Scratch with Parallel Low-Rank Adapters", eq. 3-5,
    algorithm 1; initialisation and reset-less merging from minyoungg/LTE.
    Departs from: minyoungg/LTE (`dmp`), which stores N copies of W, loops over the heads, and gives head n
    the n-th contiguous chunk of the batch, so that accumulation changes which head sees what.
    """

    name = "lte"
    knobs = {"n": "num_lora_heads", "r": "rank", "a": "alpha", "m": "merge_every"}

    class Options(HeadsOptions):
        """Heads of LTE and when they meet."""

        merge_every: PositiveInt = 10
        """Optimizer steps between two merges."""
        eval_stale: bool = False
        """Evaluate, and export, the weight of the last merge, as published: what was learned since is not in it."""

    def new_adapter(self, in_features: int, out_features: int, generator: torch.Generator) -> nn.Module:
        """The stacked heads of one layer."""
        return LteAdapter(in_features, out_features, generator, self.options)

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses what every adapter refuses, and a base that is stored in a code."""
        super().check(chain, model)
        refuse_coded_base(chain, self)

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Adds the heads."""
        for name in self.names(model):
            layer = model.get_submodule(name)
            untie(model, getattr(layer, "base", layer))
        super().attach(model, generator)

    def batch_multiple(self) -> int:
        """The heads share each batch in equal parts."""
        heads: int = self.options.num_lora_heads
        return heads

    def before_step(self, micro_batches: Sequence[Mapping[str, Tensor]], step: int) -> None:
        """Refuses a batch that the heads cannot share.

        Raises:
            ConfigError: a micro-batch that N does not divide.
        """
        sizes = [len(next(iter(batch.values()))) for batch in micro_batches]
        for size in sizes:
            if size % self.options.num_lora_heads:
                heads = self.options.num_lora_heads
                raise ConfigError(
                    f"lte: step {step} has micro-batches of {sizes} examples, and {heads} heads do not divide {size}; "
                    f"allowed: batch_size, micro_batch_size and train_rows that are multiples of {heads}"
                )

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Merges every `merge_every` steps."""
        if step % self.options.merge_every:
            return
        for _, layer in adapted(model, self.name):
            adapter: Any = layer.adapters[self.name]
            add_to_weight(layer.base, adapter.unmerged())
            adapter.merged_A.copy_(adapter.lora_A)
            adapter.merged_B.copy_(adapter.lora_B)

    def changed(self, model: nn.Module) -> dict[str, Tensor]:
        """The merged weights, and the factors they were last merged from."""
        tensors = base_weights(model, self.name)
        for name, layer in adapted(model, self.name):
            for key, buffer in layer.adapters[self.name].named_buffers():
                tensors[f"{name}.adapters.{self.name}.{key}"] = buffer
        return tensors


class LteAdapter(Heads):
    """Each head on its own share of the batch; buffers hold the factors of the last merge."""

    def __init__(self, in_features: int, out_features: int, generator: torch.Generator, options: Any) -> None:
        super().__init__(in_features, out_features, generator, options)
        self.eval_stale = options.eval_stale
        self.register_buffer("merged_A", self.lora_A.detach().clone())
        self.register_buffer("merged_B", self.lora_B.detach().clone())

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Factors of D_n - P_n: (N, 2 rank, in) and (N, out, 2 rank)."""
        merged_A, merged_B = self.get_buffer("merged_A"), self.get_buffer("merged_B")
        return torch.cat([self.lora_A, merged_A], 1), torch.cat([self.lora_B, -merged_B], 2)

    def forward(self, x: Tensor, y: Tensor, layer: AdaptedLinear) -> Tensor:
        """x (B, ..., in), y (B, ..., out) -> in training y + (D_n - P_n) x with n = example mod N, else their mean."""
        if not self.training:
            return (
                y if self.eval_stale else add_low_rank(x, y, *side_by_side(*self.stacked()), self.scaling / self.heads)
            )
        if x.shape[0] % self.heads:
            raise ConfigError(
                f"lte: {self.heads} heads do not divide the {x.shape[0]} examples of an input of shape "
                f"{tuple(x.shape)}; allowed: multiples of {self.heads}"
            )
        return add_shares(x, y, *self.stacked(), self.scaling)

    def unmerged(self) -> Tensor:
        """mean_n(D_n - P_n): (out, in)."""
        return sum_of_products(*self.stacked(), self.scaling / self.heads)

    def delta_weight(self, layer: AdaptedLinear) -> Tensor:
        """What evaluation sees beside W: (out, in)."""
        return torch.zeros_like(layer.weight) if self.eval_stale else self.unmerged()
