"""GaLore against galore-torch, and its 8-bit moments against bitsandbytes."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import galore_torch
import pytest
import torch
from torch import Tensor, nn

from lowrank.methods.galore_optimizer import GaloreOptimizer
from lowrank.methods.galore_projector import state_numel
from tests.galore_steps import spread, steps
from tests.tolerances import BIT_EXACT, GALORE_8BIT_PEER, GALORE_PEER

PROJECTORS = ["std", "reverse", "left", "right", "full"]


def test_galore_torch_keeps_the_whole_svd_alive_where_this_does_not() -> None:
    parameter = nn.Parameter(torch.randn(12, 48))
    peer = galore_peer(parameter, "std", 2)
    steps(parameter, peer, [torch.randn(12, 48)])
    assert peer.state[parameter]["projector"].ortho_matrix.untyped_storage().nbytes() == 4 * 12 * 12
    assert state_numel(12, 48, 2) == 12 * 2 + 2 * 2 * 48


def galore_peer(parameter: nn.Parameter, projector: str, rank: int, gap: int = 5, **values: Any) -> Any:
    kind = {"reverse": "reverse_std"}.get(projector, projector)
    group = {"params": [parameter], "rank": rank, "update_proj_gap": gap, "scale": 0.5, "proj_type": kind}
    return galore_torch.GaLoreAdamW([group], no_deprecation_warning=True, **{"lr": 1e-2, "eps": 1e-30, **values})


@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (12, 12)])
@pytest.mark.parametrize("projector", PROJECTORS)
def test_updates_equal_galore_torch_within_a_basis(shape: tuple[int, int], projector: Any) -> None:
    """Signs of singular vectors cancel in an update, so updates are compared, and up to the first switch.

    A switch carries moments over to vectors whose signs the peer leaves to LAPACK; from there on two
    correct implementations differ. eps is tiny, since the two add it in different places; so the first
    step with both sides projected is left out: there R is diagonal, and Adam steps by the rounding beside it.
    """
    torch.manual_seed(1)
    start = torch.randn(shape)
    gradients = [spread(shape, 0)] + [torch.randn(shape) for _ in range(4)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options: Any = {"rank": 4, "update_gap": 5, "scale": 0.5, "projector": projector, "lr": 1e-2, "eps": 1e-30}
    expected = steps(theirs, galore_peer(theirs, projector, 4), gradients)
    found = steps(ours, GaloreOptimizer([ours], [], **options), gradients)
    for step in range(1 if projector == "full" else 0, len(gradients)):
        GALORE_PEER.check(found[step], expected[step])


def test_eps_is_added_to_the_corrected_root_and_decay_uses_the_weight_before_the_step() -> None:
    """The two places where galore-torch differs from torch's AdamW; its numbers follow from ours by formula."""
    gradient, start, eps, lr, decay = spread((6, 4), 0), torch.ones(6, 4), 0.05, 0.1, 0.2
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    correction = (1 - 0.999) ** 0.5
    options: Any = {"rank": 2, "scale": 0.5, "lr": lr, "weight_decay": decay}
    steps(ours, GaloreOptimizer([ours], [], eps=eps / correction, **options), [gradient])
    steps(theirs, galore_peer(theirs, "std", 2, eps=eps, lr=lr, weight_decay=decay), [gradient])
    update = ours - (1 - lr * decay) * start
    GALORE_PEER.check(theirs, (1 - lr * decay) * (start + update))


def test_galore_torch_mixes_up_the_sides_of_reverse_at_full_rank() -> None:
    parameter = nn.Parameter(torch.randn(4, 6))
    with pytest.raises(RuntimeError):
        steps(parameter, galore_peer(parameter, "reverse", 4), [torch.randn(4, 6)])


def test_eight_bit_moments_are_those_of_bitsandbytes() -> None:
    """On the projected gradient, and on a parameter without a projector; small ones stay in float32."""
    torch.manual_seed(0)
    gradients = [torch.randn(128, 80) for _ in range(4)]
    ours, plain, small = (nn.Parameter(torch.zeros(s)) for s in ((128, 80), (128, 80), (10, 10)))
    optimizer = GaloreOptimizer([ours], [plain, small], rank=64, scale=1.0, base="adamw8bit", lr=1e-2, update_gap=9)
    alone, inside = nn.Parameter(torch.zeros(128, 80)), nn.Parameter(torch.zeros(128, 64))
    peer = bitsandbytes.optim.AdamW8bit([alone, inside], lr=1e-2, weight_decay=0.0)
    for gradient in gradients:
        ours.grad, plain.grad, small.grad = gradient.clone(), gradient.clone(), gradient[:10, :10].clone()
        optimizer.step()
        basis = optimizer.state[ours]["projector_right"]
        alone.grad, inside.grad = gradient.clone(), gradient @ basis
        peer.step()
    BIT_EXACT.check(plain, alone)
    GALORE_8BIT_PEER.check(ours, inside @ basis.T)
    assert {value.dtype for value in optimizer.state[ours].values() if isinstance(value, Tensor)} == {
        torch.uint8,
        torch.float32,
    }
    assert "codes_1" not in optimizer.state[small]
