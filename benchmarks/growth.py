"""A stack's step beside the same members one after another, in turn in one process: how it grows, when it pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.models import multiplies_bf16
from benchmarks.paired import alternate
from benchmarks.sweep_job import SHAPES, attached, batches, peer_model, stack
from benchmarks.sweep_records import Choice, Growth
from lowrank.measure import keep_freed_memory
from lowrank.measure.storages import model_tensors, saved_tensors, storage_bytes
from lowrank.stacks import MOST, by_tokens

HOST_BOUND = {"layers": 6, "width": 32, "hidden": 128, "vocabulary": 64, "rows": 1, "tokens": 4, "steps": 1000}
"""So small that the host's own work is all there is, as on a GPU with small batches."""

SMALL = {"layers": 4, "width": 256, "hidden": 1024, "vocabulary": 8000, "rows": 8, "tokens": 64, "steps": 1000}
"""Large enough for products to take most of a step."""

Step = Callable[[], None]


def growth(rounds: int, quick: bool) -> list[Growth]:
    """A step's time and saved bytes against pack size, rank, width and length of a text."""
    encoder = {**SHAPES["encoder"], "steps": 1000}
    cases: list[tuple[str, int, dict[str, Any], int, int]] = []
    cases += [("members, host-bound", k, HOST_BOUND, 8, k) for k in (1, 2, 4, 8, 16, 32)]
    cases += [("members, encoder", k, encoder, 8, k) for k in (1, 2, 4, 8)]
    cases += [("members, 4 x 256", k, SMALL, 8, k) for k in (2, 4)]
    if multiplies_bf16():
        cases += [("members, 4 x 256 in bfloat16", k, {**SMALL, "dtype": "bfloat16"}, 8, k) for k in (2, 4)]
    cases += [("rank", rank, encoder, rank, 4) for rank in (4, 16, 64)]
    cases += [("width", w, {**encoder, "width": w, "hidden": 4 * w}, 8, 4) for w in (128, 256, 512)]
    cases += [("tokens", t, {**encoder, "tokens": t}, 8, 4) for t in (12, 24, 48)]
    found = []
    keep_freed_memory()  # as a worker does; PEFT has its share of it
    for axis, value, shape, rank, members in cases[:2] if quick else cases:
        times = alternate(arms(shape, rank, members, peer=True), rounds)
        found.append(
            Growth(
                axis=axis,
                value=value,
                members=members,
                stack_ms=times.step_ms("together"),
                over_alone=times.ratio("apart", "together"),
                over_peer=times.ratio("peer", "together"),
                saved_bytes=saved_bytes(shape, rank),
            )
        )
    return found


def choices(rounds: int, quick: bool) -> list[Choice]:
    """What the planner would do at many sizes, and twice as much, beside one after another.

    Where it trains alone there is nothing to compare; two members show what company would have cost.
    """
    sizes = [(6, 32, 1, 4), (2, 128, 8, 8), (2, 128, 8, 32), (2, 384, 12, 12), (2, 384, 8, 64), (2, 384, 12, 128)]
    sizes += [(4, 256, 8, 16), (4, 256, 8, 64), (2, 768, 4, 16), (2, 768, 8, 32), (2, 768, 8, 64)]
    found = []
    keep_freed_memory()
    for layers, width, rows, tokens in sizes[:1] if quick else sizes:
        shape = {"layers": layers, "width": width, "hidden": 4 * width, "rows": rows, "tokens": tokens}
        shape |= {"vocabulary": 1000, "steps": 1000}
        chosen = by_tokens(rows * tokens)
        for members in sorted({2, max(2, chosen), min(MOST, 2 * chosen)} - {1}):
            over = alternate(arms(shape, 8, members), rounds).ratio("apart", "together")
            place = {"layers": layers, "width": width, "tokens": rows * tokens}
            found.append(Choice(**place, members=members, over_alone=over))
    return found


def arms(shape: dict[str, Any], rank: int, members: int, peer: bool = False) -> dict[str, Step]:
    """A step of all members together; and of one after another, ours and PEFT's."""
    batch = batches({**shape, "steps": 1})[0]
    together = stack(shape, [(rank, 1e-4)] * members)
    models = {"apart": attached(shape, rank).attached} | ({"peer": peer_model(shape, rank)[0]} if peer else {})

    def one_after_another(model: torch.nn.Module) -> Step:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

        def step() -> None:
            for _ in range(members):
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        return step

    return {"together": lambda: together(batch), **{name: one_after_another(model) for name, model in models.items()}}


def saved_bytes(shape: dict[str, Any], rank: int) -> int:
    """What a member's forward pass keeps for the backward pass."""
    model = attached(shape, rank).attached
    with saved_tensors() as saved:
        loss = model(**batches({**shape, "steps": 1})[0]).loss
    held = storage_bytes(saved.held(), exclude=list(model_tensors(model)))
    del loss
    return held
