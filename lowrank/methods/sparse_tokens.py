"""Which tokens of a batch are computed sparsely, and how the two kinds are taken apart and put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lowrank.errors import ConfigError

IGNORED = -100


class _Permute(torch.autograd.Function):
    """Rows in another order; backward is the other way round instead of a scattered sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


class Split:
    """The tokens of one forward pass, flattened to n = B T rows: context, which is sparse, and output, which is dense.

    Args:
        output: (B, T) bool, the output tokens.
        real: (B, T) bool, the tokens that are not padding.
    """

    def __init__(self, output: Tensor, real: Tensor) -> None:
        self.shape = output.shape
        self.order = output.flatten().to(torch.int8).argsort(stable=True)  # context first
        self.inverse = self.order.argsort()
        self.outputs = int(output.sum())
        self.context = output.numel() - self.outputs
        self.weights = (real & ~output).float()
        """(B, T): 1 where a token is scored, which is context that is not padding."""
        self.scored = self.weights.flatten().nonzero().squeeze(1)
        self._last: tuple[Tensor, Tensor] | None = None

    def take(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, d) -> context (context, d), output (outputs, d)."""
        flat = x.reshape(-1, x.shape[-1])
        if not self.outputs:
            return flat, flat[:0]
        # q, k and v, or gate and up, see the same x one after the other: it is taken apart once.
        if self._last is None or self._last[0] is not x:
            self._last = (x, _Permute.apply(flat, self.order, self.inverse))  # type: ignore[no-untyped-call]
        context, output = self._last[1].split([self.context, self.outputs])
        return context, output

    def put(self, context: Tensor, output: Tensor | None) -> Tensor:
        """context (context, d), output (outputs, d) -> (B, T, d)."""
        if output is not None:
            context = _Permute.apply(torch.cat([context, output]), self.inverse, self.order)  # type: ignore[no-untyped-call]
        return context.view(*self.shape, -1)

    def to_score(self, x: Tensor) -> Tensor:
        """x (B, T, d) -> the scored tokens (n, d)."""
        flat = x.reshape(-1, x.shape[-1])
        return flat if len(self.scored) == len(flat) else flat.index_select(0, self.scored)

    def means(self, x: Tensor) -> Tensor:
        """x (B, T, d) -> the mean of each example's scored tokens, for the examples that have some: (b, d)."""
        there = self.weights.sum(1) > 0
        weights = self.weights[there].to(x.dtype)
        return torch.einsum("bt,btd->bd", weights / weights.sum(1, keepdim=True), x[there])


class Plan:
    """What the layers need to know in one forward pass.

    `chosen` keeps their channels for a recomputation, or holds those that were chosen in advance.

    Args:
        batch: labels, and an attention mask where there is one.
        dense_tokens: `output`, the tokens with a label, or the pooled one where an example has one label; or `none`.
        pooled: the token that a classifier reads.
    """

    def __init__(
        self, batch: Mapping[str, Tensor], dense_tokens: Literal["output", "none"], pooled: Literal["first", "last"]
    ) -> None:
        self.labels = batch.get("labels") if dense_tokens == "output" else None
        self.mask = batch.get("attention_mask")
        self.pooled = pooled
        if dense_tokens == "output" and self.labels is None:
            raise ConfigError(
                "contextual_sparsity: the batch has no labels, which say what the output tokens are; "
                f"found {', '.join(batch)}; allowed: labels, or dense_tokens: none"
            )
        self.chosen: dict[Any, Any] = {}
        self._split: Split | None = None

    def split(self, x: Tensor) -> Split:
        """The tokens of x (B, T, d); all layers of a forward pass see the same ones.

        Raises:
            ConfigError: no token is left to choose channels by.
        """
        if self._split is None:
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
            real = real if self.mask is None else self.mask.bool()
            self._split = Split(self._output(real), real)
            if not self.chosen and not len(self._split.scored):
                raise ConfigError(
                    "contextual_sparsity: every token of the batch is an output token, so nothing would be sparse; "
                    "allowed: labels of -100 on a prompt, or dense_tokens: none"
                )
        return self._split

    def _output(self, real: Tensor) -> Tensor:
        if self.labels is None:
            return torch.zeros_like(real)
        if self.labels.ndim == 2:
            return self.labels != IGNORED
        place = torch.zeros(len(real), dtype=torch.int64, device=real.device)
        if self.pooled == "last":
            place = (real * torch.arange(real.shape[1], device=real.device)).argmax(1)
        output = torch.zeros_like(real)
        output[torch.arange(len(real), device=real.device), place] = True
        return output
