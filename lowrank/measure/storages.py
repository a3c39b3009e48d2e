"""Bytes that tensors hold, counted by storage: two views of one storage are one thing."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def storage_bytes(tensors: Iterable[Tensor], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes of the storages behind `tensors`, each storage once and whole.

    A view of a large storage keeps all of it alive, so all of it counts.

    Args:
        tensors: real, fake or meta tensors; views and repetitions are welcome.
        exclude: tensors whose storages do not count.
    """
    skipped = {_identity(tensor) for tensor in exclude}
    sizes = {_identity(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(size for identity, size in sizes.items() if identity not in skipped)


def _identity(tensor: Tensor) -> int:
    # The address of the storage object, not of its data: meta and fake storages have no data.
    return int(tensor.untyped_storage()._cdata)


def model_tensors(model: nn.Module) -> Iterator[Tensor]:
    """What a model keeps: parameters, buffers, and the quantisation state that hangs on parameters."""
    yield from model.buffers()
    for parameter in model.parameters():
        yield parameter
        if hasattr(parameter, "quant_state"):
            yield from tensors_in(parameter.quant_state)


def gradients(model: nn.Module) -> Iterator[Tensor]:
    """The gradients that are there."""
    return (parameter.grad for parameter in model.parameters() if parameter.grad is not None)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside nested mappings, sequences and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from tensors_in(inner)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        yield from tensors_in(vars(value))


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the storages that an optimizer keeps beside parameters and gradients.

    Storages, not elements: a state that is a slice of a larger tensor keeps the larger one.
    """
    # The values only: the keys of `state` are the parameters.
    return storage_bytes(tensors_in(list(optimizer.state.values())))


def counts(model: nn.Module) -> dict[str, int]:
    """`parameters` and `trainable_parameters`: numbers of values, shared ones once.

    A layer that codes its weight counts the values that the code stands for, not its bytes.
    """
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    coded = [math.prod(features) for features in _coded(model)]
    return {
        "parameters": sum(size for size, _ in sizes) + sum(coded),
        "trainable_parameters": sum(size for size, trains in sizes if trains),
    }


def _coded(model: nn.Module) -> Iterator[tuple[int, int]]:
    """(in, out) of the layers whose weight is stored as a code (nf4) and so is no parameter."""
    for module in model.modules():
        if hasattr(module, "add_to_weight"):
            layer: Any = module
            yield layer.in_features, layer.out_features


class SavedTensors:
    """The tensors that autograd holds for the backward pass; `held()` asks at any moment."""

    def __init__(self) -> None:
        self._held: weakref.WeakSet[_Held] = weakref.WeakSet()

    def pack(self, tensor: Tensor) -> _Held:
        """Wraps what autograd saves. The graph owns the wrapper, so a graph that is freed is no longer counted."""
        held = _Held(tensor)
        self._held.add(held)
        return held

    def held(self) -> list[Tensor]:
        """What is saved now."""
        return [held.tensor for held in self._held]


class _Held:
    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextlib.contextmanager
def saved_tensors() -> Iterator[SavedTensors]:
    """Counts what the forward pass inside the block saves for backward, by saved-tensor hooks.

    What a custom function keeps on `ctx` without `save_for_backward` is not seen.
    """
    saved = SavedTensors()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda held: held.tensor):
        yield saved
