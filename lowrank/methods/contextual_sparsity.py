"""SparseLoRA: the frozen products beside the adapters are computed for the channels that matter to the batch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import AdaptedLinear, adapt, features, strip
from lowrank.methods.adapter import AdapterPart
from lowrank.methods.micro_batches import drawing_apart, together
from lowrank.methods.part import Part
from lowrank.methods.sparse_branches import Attention, FeedForward, Now, kept
from lowrank.methods.sparse_layers import Block, family_of
from lowrank.methods.sparse_product import LowRank, lay_out
from lowrank.methods.sparse_tokens import Plan
from lowrank.spec import PartOptions, TrainSpec
from lowrank.strict import Fraction, NonNegativeInt, PositiveInt, Strict


class SparsityRule(Strict):
    """Sparsities of a range of layers; a branch that is not named keeps what it had."""

    first: NonNegativeInt = 0
    last: NonNegativeInt | None = None
    """Layers count from 0, and the last one belongs to the range; None is the model's last."""
    ffn: Fraction | None = None
    vo: Fraction | None = None
    qk: Fraction | None = None


class ContextualSparsity(Part):
    """Thins out the frozen computation of LoRA-like methods; the adapters stay dense, and so does evaluation.

    For the context tokens of a forward pass, with C the channels that score highest,

    FFN:  C of h = act(x Wgate^T) * (x Wup^T),  score_j = ||h_j||_2    -> rows C of gate and up, columns C of down
    VO:   C of v = x Wv^T,                      score_j = ||v_j||_2    -> rows C of v, columns C of o
    QK:   C of q and k,                         score_j = ||q_j||_2 ||k_j||_2    -> rows C of q and k

    The norms run over the tokens of the batch and come from a rank-`estimator_rank` SVD of each weight,
    made once. Output tokens, those with a label, are computed densely, and so are the first steps. What is
    left out of q, k and v is 0. A fused qkv (GPT-2) is treated as its three parts.

    The channels are chosen from the whole batch of an optimizer step, however it is cut: where it is run in
    micro-batches, a forward pass of the trunk over all of them, without gradients, chooses first. Nothing
    depends on padding, or on the order of the examples.

    Source: Khaki et al. 2025, "SparseLoRA: Accelerating LLM Fine-Tuning with Contextual Sparsity", section 3.
    Departs from: z-lab/sparselora, where each micro-batch chooses for itself, so that the gradient depends on
    how a batch is cut; which scores the feed-forward branch on the mean token of each example
    (`ffn_score: sequence_mean`), counts padding and output tokens into the scores, drops biases, and under
    grouped-query attention pairs the norms of query channels with those of other heads' keys. From the paper,
    for models it does not treat: without a gate, h = act(x Wup^T), the activation of the first layer's output;
    a classifier's pooled token, [CLS] or the last one, is its output token.
    """

    name = "contextual_sparsity"
    knobs = {"c": "channel_sparsity"}

    class Options(PartOptions):
        """How sparse, where, when, and how that is estimated."""

        channel_sparsity: Fraction = 0.5
        """Share of channels left out, in every layer and branch that no rule says otherwise of."""
        rules: tuple[SparsityRule, ...] = ()
        """Sparsities by range of layers; of two that fit, the later one holds. A sparsity of 0 is LoRA itself."""
        estimator_rank: PositiveInt = 8
        ffn_score: Literal["tokens", "sequence_mean"] = "tokens"
        """Norm over all context tokens (the paper), or over the examples' mean tokens (the released code)."""
        dense_tokens: Literal["output", "none"] = "output"
        """Text whose every token is predicted has no context; `none` is the paper's ablation, and works there."""
        dense_fraction: Fraction = 0.05
        """Share of the run that is dense, at its start."""
        dense_steps: NonNegativeInt | None = None
        """The same as a number of steps; None leaves it to the fraction."""

    def setup(self) -> None:
        """Nothing is sparse before the first forward pass."""
        self._now = Now()
        self._total_steps: int | None = None
        self._bases: list[nn.Module] = []
        self._whole: tuple[int, dict[Any, Any]] = (-1, {})
        """The step that was chosen for in advance, and its channels."""

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses a model it does not know, a base that trains or changes, and numbers that do not fit."""
        self._family = family = family_of(model, self.name)  # before other parts wrap its layers
        others = [part for part in chain.parts if part is not self]
        if not any(isinstance(part, AdapterPart) for part in chain.before(self)):
            raise ConfigError(
                f"{self.name}: chain {chain.name} has no adapters in front of it; it thins out the frozen products "
                "beside adapters, as in lora+contextual_sparsity"
            )
        for part in others:
            if part.name == "full" or (hasattr(part, "after_step") and hasattr(part, "changed")):
                raise ConfigError(
                    f"{self.name}: {part.name} changes the base while it trains, and the channels are chosen by an "
                    "SVD of the base made once; allowed: a frozen base"
                )
            if part.name == "velora" and part in chain.before(self):
                raise ConfigError(
                    f"{self.name}: velora in front of it would look at a batch whose channels are not chosen yet; "
                    "allowed: velora behind it"
                )
        last = family.blocks[-1].index
        for rule in self.options.rules:
            end = last if rule.last is None else rule.last
            if rule.first > end or end > last:
                raise ConfigError(f"{self.name}: a rule names layers {rule.first} to {end}; allowed: 0 to {last}")
        for block in family.blocks:
            for name in self._hooked(block):
                limit = min(features(model.get_submodule(name)))
                if self.options.estimator_rank > limit:
                    rank = self.options.estimator_rank
                    raise ConfigError(
                        f"{self.name}: estimator_rank {rank} is too large for {name!r}; allowed: 1 to {limit}"
                    )

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Puts the sparse products in; layers with sparsity 0 are not touched.

        Raises:
            ConfigError: a layer whose own weight trains, or whose product another part computes.
        """
        self._model = model
        for block in self._family.blocks:
            layers = {kind: adapt(model, name) for kind, name in block.names.items() if name in self._hooked(block)}
            for kind, layer in layers.items():
                self._refuse(block.names[kind], layer)
            for branch in self._branches(block, layers):
                for layer, product in branch.products().items():
                    layer.base_product = product
                    # A product of all tokens and channels reads a weight laid out either way equally fast.
                    lay_out(layer.base, columns=layer in (layers.get("down"), layers.get("o")))
                    self._bases.append(layer.base)
        strip(model)

    def begin(self, train: TrainSpec, total_steps: int) -> None:
        """Learns how long the run is, for `dense_fraction`."""
        self._total_steps = total_steps

    def before_step(self, micro_batches: Sequence[Mapping[str, Tensor]], step: int) -> None:
        """Chooses the channels of a batch that is run in several pieces; one piece chooses as it is run."""
        if len(micro_batches) == 1 or step < self._dense_steps():
            return
        whole = together(micro_batches)
        inputs = {key: tensor for key, tensor in whole.items() if key != "labels"}
        trunk = getattr(self._model, "base_model", self._model)  # no head, so no logits of the whole batch
        self._now.plan = plan = self._plan(whole)
        with torch.no_grad(), drawing_apart(whole):
            trunk(**inputs)
        self._whole = (step, plan.chosen)

    def before_forward(self, batch: Mapping[str, Tensor], step: int) -> None:
        """Decides whether this forward pass is sparse, and for which tokens."""
        self._now.plan = self._plan(batch) if step >= self._dense_steps() else None
        if self._now.plan is not None and self._whole[0] == step:
            self._now.plan.chosen |= self._whole[1]

    def _plan(self, batch: Mapping[str, Tensor]) -> Plan:
        return Plan(batch, self.options.dense_tokens, self._family.pooled)

    @contextlib.contextmanager
    def eval_mode(self, model: nn.Module) -> Iterator[None]:
        """Evaluation is dense."""
        plan, self._now.plan = self._now.plan, None
        try:
            yield
        finally:
            self._now.plan = plan

    def merge(self, model: nn.Module) -> None:
        """Takes the sparse products out; there is nothing to fold in."""
        for module in model.modules():
            if isinstance(module, AdaptedLinear) and module.base in self._bases:
                module.base_product = None
                for name in [name for name, child in module.named_children() if isinstance(child, LowRank)]:
                    delattr(module, name)
        for base in self._bases:
            lay_out(base, columns=None)
        self._bases.clear()
        strip(model)

    def unmerge(self, model: nn.Module) -> None:
        """Puts the sparse products back, with estimates of the weights as they are now."""
        self.attach(model, torch.Generator())

    def _dense_steps(self) -> int:
        options = self.options
        if options.dense_steps is not None:
            return int(options.dense_steps)
        if options.dense_fraction == 0:
            return 0
        if self._total_steps is None:
            raise ConfigError(
                f"{self.name}: dense_fraction {options.dense_fraction} is a share of a run whose length was not said; "
                "allowed: dense_steps, or a call of the chain's schedule first"
            )
        return math.ceil(float(options.dense_fraction) * self._total_steps)

    def _sparsity(self, index: int, branch: str) -> float:
        """The sparsity of a branch ("ffn", "vo" or "qk") of one layer."""
        found = self.options.channel_sparsity
        for rule in self.options.rules:
            inside = rule.first <= index and (rule.last is None or index <= rule.last)
            value = getattr(rule, branch)
            found = value if inside and value is not None else found
        return float(found)

    def _hooked(self, block: Block) -> list[str]:
        """The layers of a block whose products are thinned out."""
        kinds = {"ffn": ("gate", "up", "down"), "vo": ("qkv", "v", "o"), "qk": ("qkv", "q", "k")}
        wanted = {kind for branch, some in kinds.items() if self._sparsity(block.index, branch) for kind in some}
        return [name for kind, name in block.names.items() if kind in wanted]

    def _branches(self, block: Block, layers: dict[str, AdaptedLinear]) -> list[FeedForward | Attention]:
        """The sparse branches of one block, of those of its layers that are thinned out."""
        ffn, vo, qk = (self._sparsity(block.index, branch) for branch in ("ffn", "vo", "qk"))
        rank, branches = self.options.estimator_rank, list[FeedForward | Attention]()
        if ffn:
            chain = [layers[kind] for kind in ("gate", "up", "down") if kind in layers]
            count = kept(chain[-1].in_features, ffn)
            branches.append(FeedForward(self._now, chain, self._family.activation, count, rank, self.options.ffn_score))
        if vo or qk:
            branches.append(Attention(self._now, layers, self._family, (qk, vo), rank))
        return branches

    def _refuse(self, name: str, layer: AdaptedLinear) -> None:
        if layer.base_product is not None:
            raise ConfigError(f"{self.name}: another part computes the base product of {name!r}; allowed: one")
        if any(parameter.requires_grad and parameter.ndim > 1 for parameter in layer.base.parameters()):
            raise ConfigError(f"{self.name}: the weight of {name!r} trains; allowed: frozen weights beside adapters")
