"""How far two tensors may be apart, with the reason of each. Tests take tolerances from here and nowhere else.

All are for float32 unless the name says otherwise. float32 rounds to 6e-8 of a value; a sum of n
products in another order differs by about sqrt(n) times that, relative to its largest term.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """|actual - expected| <= absolute + relative * |expected|, element by element."""

    relative: float
    absolute: float
    reason: str

    def check(self, actual: Tensor, expected: Tensor) -> None:
        """Raises AssertionError, naming the worst element, when the tensors are further apart."""
        torch.testing.assert_close(actual, expected, rtol=self.relative, atol=self.absolute)


BIT_EXACT = Tolerance(0.0, 0.0, "the same operations on the same values in the same order")

MERGE = Tolerance(1e-5, 1e-6, "x(W + BA) against xW + xBA: the same sum in another order, and W + BA is rounded once")

PEER_FORWARD = Tolerance(1e-5, 1e-6, "a peer may scale B instead of the product, and sum its terms in another order")

PEER_GRADIENT = Tolerance(
    1e-4, 1e-6, "as PEER_FORWARD, through one more product, and summed over all tokens of a batch"
)

PACK_20_STEPS = Tolerance(
    1e-6, 1e-6, "losses, scores and weights of a member in a stack and alone: batched products round differently"
)

PACK_50_STEPS = Tolerance(1e-5, 1e-5, "as PACK_20_STEPS; each step feeds its rounding into the next")

FLOAT64_IDENTITY = Tolerance(
    1e-9, 1e-11, "an identity of real numbers, in double (1e-16 a rounding), through a few layers and Adam's division"
)

NF4_HALF = Tolerance(2e-2, 2e-2, "a product in bfloat16 (4e-3) or float16, against bitsandbytes' in another order")

FLOAT32_ORTHOGONAL = Tolerance(1e-5, 1e-5, "rows orthonormal to the rounding of a float32 QR, times a factor of a few")

GALORE_ENERGY = Tolerance(
    1e-5, 0.0, "the Gram matrix squares rounding in the vectors, but energy is stationary at them: 1e-6 or less is left"
)

GALORE_PEER = Tolerance(
    1e-3, 1e-6, "singular vectors by two routes, apart by rounding over the gap of the values; Adam divides by R's size"
)

GALORE_8BIT_PEER = Tolerance(
    1e-4, 1e-6, "one product with the basis after 4 steps here, 4 products there; the 8-bit codes are the same"
)

BFLOAT16 = Tolerance(
    2e-2, 2e-2, "bfloat16 rounds to 4e-3; inputs, a narrow product and the result are each rounded once"
)

SAVED_BYTES = Tolerance(
    0.05, 0.0, "predicted against measured: a kernel may lay out a result otherwise than its fake twin; equal so far"
)

BFLOAT16_LOSS = Tolerance(1e-2, 0.0, "a loss through a few layers whose products round to 8 bits (4e-3)")

FLOAT16 = Tolerance(5e-3, 5e-3, "float16 rounds to 5e-4; z, z v^T and a sum over tokens are rounded, in two orders")

FLOAT32_VECTOR = Tolerance(
    1e-5, 1e-6, "a unit vector found in double and held in float32, or found from float32 inputs"
)

PROCESSES = Tolerance(
    1e-6, 1e-6, "losses of one process and of several: the gradients of micro-batches are summed in another order"
)

BFLOAT16_RUN = Tolerance(0.1, 0.05, "bfloat16 (4e-3 a rounding) through a whole model and back, against float64")

LEAN_GRADIENT = Tolerance(
    1e-4,
    2e-5,
    "of the largest gradient: a norm inverted from its output is off by at most 2 * 64 roundings (6e-8), so 8e-6, "
    "and sums over features and tokens follow",
)
