"""Pieces that a device could compute otherwise: sparse products, bases, masks, losses, blocks computed again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank.head_loss import head_loss
from lowrank.methods.dropout import kept_mask, kept_share
from lowrank.methods.galore_projector import Projector, bases
from lowrank.methods.low_rank import FactoredLinear
from lowrank.methods.sparse_product import LowRank, columns_product, lay_out, rows_product
from lowrank.methods.sparse_tokens import Split
from lowrank.spec import RunSpec
from tests.gpu.lab import CPU, DEVICE, losses, train
from tests.test_sparse_product import layer
from tests.tolerances import BFLOAT16, BIT_EXACT, FLOAT64_IDENTITY, Tolerance
from tests.training_lab import run_spec

IN_SINGLE = Tolerance(1e-4, 1e-4, "float32 (6e-8) through eigenvectors of a Gram matrix, which squares it")


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("laid_out", [False, True])
def test_a_picked_product_and_its_gradient(kind: str, columns: bool, laid_out: bool) -> None:
    here = layer(kind, 24, 40, bias=True)
    there = copy.deepcopy(here).to(DEVICE)
    index = torch.tensor([1, 3, 4, 17, 22])
    found = []
    for base, device in ((here, CPU), (there, DEVICE)):
        if laid_out:
            lay_out(base, columns=columns)
        x = drawn(7, len(index) if columns else 24).to(device).requires_grad_()
        y = (columns_product if columns else rows_product)(x, base, index.to(device))
        y.square().sum().backward()
        assert x.grad is not None
        found.append((y.detach().cpu(), x.grad.cpu()))
    for ours, expected in zip(*found, strict=True):
        FLOAT64_IDENTITY.check(ours, expected)


@pytest.mark.parametrize("shape", [(64, 24), (24, 64)])
def test_an_estimate(shape: tuple[int, int]) -> None:
    weight, bias, x = drawn(*shape), drawn(shape[0], seed=1), drawn(9, shape[1], seed=2)
    here, there = LowRank(weight, bias, 8), LowRank(weight.to(DEVICE), bias.to(DEVICE), 8)
    FLOAT64_IDENTITY.check(there.norms(x.to(DEVICE)).cpu(), here.norms(x))
    FLOAT64_IDENTITY.check(there.values(there.hidden(x.to(DEVICE))).cpu(), here.values(here.hidden(x)))


def test_tokens_are_taken_apart_and_put_together() -> None:
    output = drawn(3, 5) > 0
    split = Split(output.to(DEVICE), torch.ones_like(output).to(DEVICE))
    x = drawn(3, 5, 4).to(DEVICE).requires_grad_()
    context, dense = split.take(x)
    BIT_EXACT.check(dense.detach().cpu(), x.detach().cpu()[output])
    again = split.put(context, dense)
    again.sum().backward()
    BIT_EXACT.check(again, x)
    assert x.grad is not None
    BIT_EXACT.check(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("projector", ["std", "reverse", "full"])
@pytest.mark.parametrize("shape", [(48, 20), (20, 48), (3, 32, 16)])
def test_bases_are_the_cpus_up_to_rounding(shape: tuple[int, ...], projector: Projector, dtype: torch.dtype) -> None:
    gradient = drawn(*shape, dtype=dtype)
    here, there = bases(gradient, 6, projector), bases(gradient.to(DEVICE), 6, projector)
    assert here.keys() == there.keys()
    for key, expected in here.items():
        assert there[key].device.type == DEVICE.type
        (FLOAT64_IDENTITY if dtype == torch.float64 else IN_SINGLE).check(there[key].cpu(), expected)


def test_factors_are_the_cpus_up_to_rounding() -> None:
    """Their signs do not depend on the library that takes the singular values."""
    here = nn.Linear(24, 40, dtype=torch.float64)
    there = FactoredLinear(copy.deepcopy(here).to(DEVICE), 6)
    expected = FactoredLinear(here, 6)
    FLOAT64_IDENTITY.check(there.factor_A.detach().cpu(), expected.factor_A)
    FLOAT64_IDENTITY.check(there.factor_B.detach().cpu(), expected.factor_B)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.999])
def test_a_mask_is_the_same_again_and_keeps_its_share(dropout: float) -> None:
    shape = torch.Size([1000, 1001])
    mask = kept_mask(shape, DEVICE, dropout, seed=2**62 + 1)
    assert mask.device.type == DEVICE.type
    BIT_EXACT.check(kept_mask(shape, DEVICE, dropout, seed=2**62 + 1), mask)
    assert not torch.equal(kept_mask(shape, DEVICE, dropout, seed=3), mask)
    share, kept = kept_share(dropout), mask.double().mean().item()
    assert abs(kept - share) < 6 * (share * (1 - share) / mask.numel()) ** 0.5
    for part in mask[:, :1000].view(1000, 250, 4).unbind(-1):  # the four entries that share a draw
        assert abs(part.double().mean().item() - share) < 6 * (share * (1 - share) / part.numel()) ** 0.5


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_loss_of_a_head(autocast: bool, trains: bool) -> None:
    """Chunk by chunk as all at once: the loss, and the gradients of states and weight."""
    dtype = torch.float32 if autocast else torch.float64
    labels = torch.randint(300, (700,), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    found = []
    for plain in (False, True):
        hidden = drawn(700, 32, dtype=dtype).to(DEVICE).requires_grad_()
        weight = drawn(300, 32, dtype=dtype, seed=1).mul_(0.1).to(DEVICE).requires_grad_(trains)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=autocast):
            if plain:
                logits = functional.linear(hidden, weight)
                loss = functional.cross_entropy(logits.to(dtype), labels, reduction="sum")
            else:
                loss = head_loss(hidden, weight, labels)
        (loss / 700).backward()
        found.append([loss.detach() / 700, hidden.grad, *([weight.grad] if trains else [])])
    for ours, expected in zip(*found, strict=True):
        assert ours is not None
        (BFLOAT16 if autocast else FLOAT64_IDENTITY).check(ours, expected)


COMPUTED_AGAIN = {
    "bert": run_spec([{"part": "lora", "dropout": 0.2}], steps=4, eval_every=2),
    "llama": RunSpec.model_validate(
        {
            "task": "causal_lm",
            "model": {"card": "smoke_llama"},
            "data": {"card": "smoke_text", "max_length": 16, "sample": "blocks", "validation_rows": 8, "test_rows": 8},
            "chain": "full",
            "train": {"lr": 1e-3, "steps": 4, "batch_size": 4, "eval_every": 2},
        }
    ),
}


@pytest.mark.parametrize("name", COMPUTED_AGAIN)
def test_blocks_that_are_computed_again_change_nothing(name: str) -> None:
    """With dropout in the base and in the adapters, whose masks have to come again."""
    spec = COMPUTED_AGAIN[name]
    again = spec.model_copy(update={"model": spec.model.model_copy(update={"gradient_checkpointing": True})})
    BIT_EXACT.check(losses(again, train(again, folder="again")), losses(spec, train(spec)))
