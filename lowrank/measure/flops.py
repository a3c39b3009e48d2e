"""Floating-point operations, CPU attention included."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


class FlopCounter(FlopCounterMode):
    """Counts the multiply-adds of products, convolutions and attention, two operations each.

    Element-wise work is not counted, nor is the causal half of attention left out; both are torch's
    conventions.

    Departs from: `FlopCounterMode` has no formula for the CPU's attention kernel and counts it as 0,
    which makes a model cheaper on a CPU than on a GPU.
    """

    def __init__(self) -> None:
        aten = torch.ops.aten
        super().__init__(
            display=False,
            custom_mapping={
                aten._scaled_dot_product_flash_attention_for_cpu: _attention,
                aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
            },
        )
