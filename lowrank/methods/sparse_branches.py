"""The two branches of a transformer block whose frozen products SparseLoRA thins out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lowrank.methods.adapted import AdaptedLinear
from lowrank.methods.sparse_layers import Family
from lowrank.methods.sparse_product import LowRank, columns_product, rows_product
from lowrank.methods.sparse_tokens import Plan, Split

Product = Callable[[Tensor], Tensor]

SCORE_ENTRIES = 1 << 18
"""Entries of a feed-forward activation that are scored at a time: few enough to stay in the processor's cache."""


@dataclass
class Now:
    """What the branches share: the plan of the current forward pass, None where everything is dense."""

    plan: Plan | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Now:
        # A plan belongs to a forward pass of the original, whose tensors it holds.
        return Now()

    def for_layer(self, layer: AdaptedLinear) -> Plan | None:
        """The plan, where the layer is in training."""
        return self.plan if layer.training else None


def kept(channels: int, sparsity: float) -> int:
    """How many of a layer's channels are computed: round((1 - sparsity) channels), at least one."""
    return max(1, round((1 - sparsity) * channels))


def strongest(scores: Tensor, count: int) -> Tensor:
    """The channels with the largest scores, (count,) int64, in ascending order, so that memory is read in order."""
    return scores.topk(count).indices.sort().values


def produce(layer: AdaptedLinear, split: Split, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The rows of a product for the context, and the whole product for the output tokens, if there are any."""
    context, output = split.take(x)
    return rows_product(context, layer.base, rows), layer.base(output) if split.outputs else None


def widen(context: Tensor, channels: Tensor, width: int) -> Tensor:
    """(n, k) -> (n, width): channels that were not computed are 0."""
    return context.new_zeros(len(context), width).index_copy(1, channels, context)


def consume(layer: AdaptedLinear, split: Split, context: Tensor, output: Tensor, channels: Tensor) -> Tensor:
    """The product with some columns for context (n, k), with all of them for output (m, in): (B, T, out)."""
    y = columns_product(context, layer.base, channels)
    return split.put(y, layer.base(output) if split.outputs else None)


class FeedForward:
    """h = act(x Wgate^T) * (x Wup^T), or act(x Wup^T), and y = h Wdown^T.

    Channel j of h scores the L2 norm over the context tokens of its estimate. Between the layers h is
    packed: the kept channels of the context and all channels of the output tokens, end to end in one
    dimension, since what happens to it there acts on each entry alone. Layers with adapters get h at its
    full width, zero where nothing was computed: an adapter reads and writes all channels.

    Args:
        now: the current plan.
        layers: gate where there is one, up, down.
        activation: act.
        count: channels kept.
        rank: of the estimates.
        score: whether h is estimated for each token, or for the mean token of each example.
    """

    def __init__(
        self,
        now: Now,
        layers: list[AdaptedLinear],
        activation: Callable[[Tensor], Tensor],
        count: int,
        rank: int,
        score: Literal["tokens", "sequence_mean"],
    ) -> None:
        self.now, self.layers, self.activation, self.count, self.score = now, layers, activation, count, score
        *self.producers, self.down = layers
        self.width = self.down.in_features
        self.estimates = [LowRank(layer.weight, layer.bias, rank) for layer in self.producers]
        for layer, estimate in zip(self.producers, self.estimates):
            layer.add_module("estimate", estimate)

    def products(self) -> dict[AdaptedLinear, Product]:
        """Layer -> what computes its base product."""
        return {layer: partial(self._produce, layer) for layer in self.producers} | {self.down: self._consume}

    def channels(self, x: Tensor, plan: Plan) -> Tensor:
        """The channels that are computed in this forward pass: (count,)."""
        if self not in plan.chosen:
            with torch.no_grad():
                plan.chosen[self] = strongest(self.scores(x, plan.split(x)), self.count)
        found: Tensor = plan.chosen[self]
        return found

    def scores(self, x: Tensor, split: Split) -> Tensor:
        """The estimated norm of each channel, squared: (width,)."""
        x = split.means(x) if self.score == "sequence_mean" else split.to_score(x)
        hidden = [estimate.hidden(x) for estimate in self.estimates]
        total = torch.zeros(self.width, dtype=torch.float32, device=x.device)
        rows = max(1, SCORE_ENTRIES // self.width) if x.device.type == "cpu" else len(x)
        for parts in zip(*(h.split(rows) for h in hidden)):
            values = [estimate.values(part) for estimate, part in zip(self.estimates, parts)]
            h = self.activation(values[0]) * values[1] if len(values) == 2 else self.activation(values[0])
            total = total + h.to(torch.promote_types(h.dtype, torch.float32)).square_().sum(0)
        return total

    @property
    def _bare(self) -> bool:
        return not any(len(layer.adapters) for layer in self.layers)

    def _produce(self, layer: AdaptedLinear, x: Tensor) -> Tensor:
        plan = self.now.for_layer(layer)
        if plan is None:
            y: Tensor = layer.base(x)
            return y
        split, channels = plan.split(x), self.channels(x, plan)
        context, output = produce(layer, split, x, channels)
        if not self._bare:
            return split.put(widen(context, channels, self.width), output)
        return context.flatten() if output is None else torch.cat([context.flatten(), output.flatten()])

    def _consume(self, h: Tensor) -> Tensor:
        plan = self.now.for_layer(self.down)
        if plan is None:
            y: Tensor = self.down.base(h)
            return y
        channels, split = plan.chosen[self], plan.split(h)
        if self._bare:
            context, output = h.split([split.context * self.count, split.outputs * self.width])
            context, output = context.view(-1, self.count), output.view(-1, self.width)
        else:
            context, output = split.take(h)
            context = context.index_select(1, channels)
        return consume(self.down, split, context, output, channels)


class Attention:
    """q, k, v and o of one block. Channels are those of the key and value heads, (kv_heads, head_dim) flattened.

    Channel j of v scores its norm, ||V_j||; of q and k, ||Q_j|| ||K_j||, where a key head that serves
    several query heads takes the mean of their norms. What is not computed is 0, at full width, so
    that heads and rotary embeddings need not know. The norms are taken before a rotary embedding, which
    mixes channel j with j + head_dim / 2: a channel that was left out is then a share of its partner.

    Args:
        now: the current plan.
        layers: kind -> layer; q, k and v, or qkv in one, and o.
        family: the numbers and the width of the heads.
        sparsity: of q and k, and of v and o; 0 leaves those layers alone.
        rank: of the estimates.
    """

    def __init__(
        self,
        now: Now,
        layers: dict[str, AdaptedLinear],
        family: Family,
        sparsity: tuple[float, float],
        rank: int,
    ) -> None:
        self.now, self.layers, self.sparsity = now, layers, sparsity
        self.head_dim, self.kv_heads = family.head_dim, family.kv_heads
        self.group = family.heads // family.kv_heads
        self.queries, self.keys = family.heads * family.head_dim, family.kv_heads * family.head_dim
        sizes = {"q": self.queries, "k": self.keys, "v": self.keys}
        wanted = [kind for kind, share in zip("qkv", (sparsity[0], sparsity[0], sparsity[1])) if share]
        self.estimates: dict[str, LowRank] = {}
        for kind in wanted:
            layer, start = layers.get(kind), 0
            if layer is None:
                layer, start = layers["qkv"], {"q": 0, "k": self.queries, "v": self.queries + self.keys}[kind]
            rows = slice(start, start + sizes[kind])
            self.estimates[kind] = LowRank(layer.weight[rows], None if layer.bias is None else layer.bias[rows], rank)
            layer.add_module(f"estimate_{kind}", self.estimates[kind])

    def products(self) -> dict[AdaptedLinear, Product]:
        """Layer -> what computes its base product."""
        kinds = ["qkv"] if "qkv" in self.layers else list(self.estimates)
        made: dict[AdaptedLinear, Product] = {self.layers[kind]: partial(self._produce, kind) for kind in kinds}
        return made | ({self.layers["o"]: self._consume} if self.sparsity[1] else {})

    def channels(self, x: Tensor, plan: Plan) -> dict[str, Tensor]:
        """Kind -> the channels that are computed in this forward pass, of q, k, v (outputs) and o (inputs)."""
        if self not in plan.chosen:
            with torch.no_grad():
                plan.chosen[self] = self._choose(plan.split(x).to_score(x))
        found: dict[str, Tensor] = plan.chosen[self]
        return found

    def _choose(self, x: Tensor) -> dict[str, Tensor]:
        norms = {kind: estimate.norms(x) for kind, estimate in self.estimates.items()}
        every = {"q": torch.arange(self.queries, device=x.device), "k": torch.arange(self.keys, device=x.device)}
        chosen = {**every, "v": every["k"]}
        if "q" in norms:
            shared = norms["q"].view(self.kv_heads, self.group, self.head_dim).mean(1).flatten()
            chosen["k"] = strongest(shared * norms["k"], kept(self.keys, self.sparsity[0]))
            chosen["q"] = self._of_queries(chosen["k"])
        if "v" in norms:
            chosen["v"] = strongest(norms["v"], kept(self.keys, self.sparsity[1]))
            chosen["o"] = self._of_queries(chosen["v"])
        chosen["qkv"] = torch.cat([chosen["q"], chosen["k"] + self.queries, chosen["v"] + self.queries + self.keys])
        return chosen

    def _of_queries(self, channels: Tensor) -> Tensor:
        """Channels of the key heads -> the same channels of all query heads that they serve, ascending."""
        head, place = channels // self.head_dim, channels % self.head_dim
        served = head[:, None] * self.group + torch.arange(self.group, device=channels.device)
        return (served * self.head_dim + place[:, None]).flatten().sort().values

    def _produce(self, kind: str, x: Tensor) -> Tensor:
        layer = self.layers[kind]
        plan = self.now.for_layer(layer)
        if plan is None:
            y: Tensor = layer.base(x)
            return y
        split, channels = plan.split(x), self.channels(x, plan)[kind]
        context, output = produce(layer, split, x, channels)
        return split.put(widen(context, channels, layer.out_features), output)

    def _consume(self, h: Tensor) -> Tensor:
        layer = self.layers["o"]
        plan = self.now.for_layer(layer)
        if plan is None:
            y: Tensor = layer.base(h)
            return y
        split, channels = plan.split(h), plan.chosen[self]["o"]
        context, output = split.take(h)
        return consume(layer, split, context.index_select(1, channels), output, channels)
