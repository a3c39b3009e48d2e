"""Steps of a stack as a CUDA graph: captured once and replayed, the same numbers; Python has no part in them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lowrank.methods.stacked_chain import StackedChain
from lowrank.train.stacked_adamw import StackedAdamW
from tests.gpu.lab import DEVICE, cuda_alone
from tests.test_stack import CHAINS, STEPS, TRAINS, mean_loss, rows, stacked
from tests.tolerances import BIT_EXACT, FLOAT64_IDENTITY

pytestmark = cuda_alone  # and last by name: a capture that fails may leave the process without random numbers

FAMILY, SIZE = "distilbert", 4
NAMES = ["lora", "hira", "linear_probe"]


def stack_of(name: str) -> tuple[StackedChain, StackedAdamW]:
    """Three members on the GPU, in double, that differ in rank, learning rate, schedule, clipping and weight decay."""
    stack = stacked(FAMILY, CHAINS[name])
    stack.attached.to(DEVICE)
    return stack, StackedAdamW(stack.trainable(), TRAINS, STEPS)


def weights(stack: StackedChain) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in stack.trainable().items()}


def captured(work: Callable[[], None], adamw: StackedAdamW) -> torch.cuda.CUDAGraph:
    """The graph of `work`, with weights and moments as they were before it was warmed up."""
    held = [[slab.weight.clone(), *(moment.clone() for moment in slab.moments())] for slab in adamw.slabs]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    with torch.no_grad():
        for slab, before in zip(adamw.slabs, held, strict=True):
            for tensor, old in zip((slab.weight, *slab.moments()), before, strict=True):
                tensor.copy_(old)
    adamw.resume(0)
    return graph


def drawn(stack: StackedChain, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype).to(DEVICE)
        for name, parameter in stack.trainable().items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_an_update_is_captured(name: str) -> None:
    """Where a step stands, and so its learning rates, is read on the device."""
    plain, adamw = stack_of(name)
    for step in range(STEPS):
        for key, gradient in drawn(plain, step).items():
            plain.trainable()[key].grad = gradient
        adamw.step()
    stack, adamw = stack_of(name)
    fixed = {key: torch.ones_like(parameter) for key, parameter in stack.trainable().items()}

    def update() -> None:
        for key, parameter in stack.trainable().items():
            parameter.grad = fixed[key]
        adamw.step()

    graph = captured(update, adamw)
    for step in range(STEPS):
        for key, gradient in drawn(stack, step).items():
            fixed[key].copy_(gradient)
        graph.replay()
    assert int(adamw.taken) == STEPS
    for key, tensor in weights(plain).items():
        BIT_EXACT.check(weights(stack)[key], tensor)


def inputs_of(step: int) -> dict[str, Tensor]:
    own = [rows(FAMILY, member, step, SIZE) for member in range(len(TRAINS))]
    return {key: torch.cat([one[key] for one in own]).to(DEVICE) for key in own[0]}


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_step_is_captured(name: str) -> None:
    """Forward, backward and update as one graph."""
    plain, adamw = stack_of(name)
    expected = []
    for step in range(STEPS):
        loss = len(TRAINS) * mean_loss(plain.attached, inputs_of(step))
        loss.backward()
        adamw.step()
        expected.append(loss.detach())
    stack, adamw = stack_of(name)
    fixed, seen = inputs_of(0), torch.zeros((), dtype=torch.float64, device=DEVICE)

    def one_step() -> None:
        loss = len(TRAINS) * mean_loss(stack.attached, fixed)
        loss.backward()
        adamw.step()
        seen.copy_(loss.detach())

    graph = captured(one_step, adamw)
    found = []
    for step in range(STEPS):
        for key, tensor in inputs_of(step).items():
            fixed[key].copy_(tensor)
        graph.replay()
        found.append(seen.clone())
    FLOAT64_IDENTITY.check(torch.stack(found), torch.stack(expected))
    for key, tensor in weights(plain).items():
        FLOAT64_IDENTITY.check(weights(stack)[key], tensor)
