"""Zeros among the adapters' factors, and what kernels that know of them make of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lowrank.evaluate.clock import clock, seconds
from lowrank.evaluate.protocol import Outcome, Protocol, Subject
from lowrank.methods.adapted import AdaptedLinear
from lowrank.strict import PositiveInt, Strict

Factors = tuple[Tensor, Tensor]
"""Of one layer: down (rank, in) and up (out, rank)."""


class AdapterSparsity(Protocol):
    """The low-rank terms of all layers on the same inputs, computed in three ways.

    `zero_share`: share of the factors' values that are exactly zero; `zeros` and `values` their numbers, `nonzeros`
    what is left of them and of the other trained values (the head).
    `dense_s`: median seconds of up (down x) over all layers, `rows` inputs each. `sparse_s`: the same with both
    factors in compressed rows (CSR), which skip zeros. `sliced_s`: the same without the rank components whose row
    of down and column of up are zero, which is what structured pruning leaves. `sparse_speedup` and
    `sliced_speedup`: dense_s over each. `clock`: as in `cost`.
    """

    name = "adapter_sparsity"

    class Options(Strict):
        """How much is timed, and how often."""

        rows: PositiveInt = 256
        """Inputs (tokens) of each product."""
        repeats: PositiveInt = 9

    metrics = (
        "zero_share",
        "zeros",
        "values",
        "nonzeros",
        "dense_s",
        "sparse_s",
        "sliced_s",
        "sparse_speedup",
        "sliced_speedup",
        "clock",
    )

    def measure(self, subject: Subject) -> Outcome:
        """No numbers for a run without low-rank adapters."""
        layers = list(_factors(subject.model))
        if not layers:
            return Outcome(metrics=dict.fromkeys(self.metrics))
        factors = [factor for pair in layers for factor in pair]
        zeros, values = sum(map(_zeros, factors)), sum(factor.numel() for factor in factors)
        times = self._times(layers, subject)
        trained = sum(parameter.numel() for parameter in subject.model.parameters() if parameter.requires_grad)
        shares = {"zero_share": zeros / values, "zeros": zeros, "values": values, "nonzeros": trained - zeros}
        gains = {f"{way}_speedup": times["dense_s"] / times[f"{way}_s"] for way in ("sparse", "sliced")}
        return Outcome(metrics={**shares, **times, **gains, "clock": clock(subject.device)})

    @torch.no_grad()
    def _times(self, layers: list[Factors], subject: Subject) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(down.shape[1], self.options.rows, generator=generator).to(down) for down, _ in layers]
        kept = [_live(pair) for pair in layers]
        ways: dict[str, list[Factors]] = {
            "dense_s": layers,
            "sparse_s": [(down.to_sparse_csr(), up.to_sparse_csr()) for down, up in layers],
            "sliced_s": [(down[live].contiguous(), up[:, live].contiguous()) for (down, up), live in zip(layers, kept)],
        }
        timed = functools.partial(seconds, device=subject.device, repeats=self.options.repeats, poll=subject.poll)
        return {name: timed(_products(pairs, inputs)) for name, pairs in ways.items()}


def _products(pairs: list[Factors], inputs: list[Tensor]) -> Callable[[], object]:
    return lambda: [up @ (down @ x) for (down, up), x in zip(pairs, inputs, strict=True)]


def _live(pair: Factors) -> Tensor:
    """(rank,) bool: components whose row of down and column of up both hold something."""
    down, up = pair
    return (down != 0).any(dim=1) & (up != 0).any(dim=0)


def _zeros(factor: Tensor) -> int:
    return int((factor == 0).sum())


def _factors(model: nn.Module) -> Iterator[Factors]:
    """The two factors of each adapter that has a down (rank, in) and an up (out, rank)."""
    for module in model.modules():
        for adapter in module.adapters.values() if isinstance(module, AdaptedLinear) else ():
            named = dict(adapter.named_parameters())
            downs = [named[name] for name in named if name.endswith("_A")]
            ups = [named[name] for name in named if name.endswith("_B")]
            if len(downs) == len(ups) == 1 and downs[0].ndim == 2:
                yield downs[0].detach(), ups[0].detach()
