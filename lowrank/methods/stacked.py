"""K members of a pack in one model: what trains, and what else differs, along a leading axis; the rest shared.

The rows of a batch stand in member order: with B rows a member, x is (K * B, ..., width), and a product
with the shared weight sees nothing but a larger batch. A product with weights of the members' own is one
batched product over (K, B * ..., width).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowrank.errors import ConfigError
from lowrank.methods.adapted import replace
from lowrank.targets import head_names


def by_member(x: Tensor, members: int) -> Tensor:
    """(K * B, ..., width) -> (K, B * ..., width), without a copy where x is contiguous."""
    return x.reshape(members, -1, x.shape[-1])


@torch.no_grad()
def padded(tensors: Sequence[Tensor]) -> Tensor:
    """K tensors as one (K, ...), each in the corner of zeros of the largest shape.

    Zero rows of A and columns of B stay zero: their gradients are products with each other.
    """
    first = tensors[0]
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    whole = first.new_zeros((len(tensors), *shape))
    for row, tensor in zip(whole, tensors, strict=True):
        row[corner(tensor.shape)].copy_(tensor)
    return whole


def corner(shape: Sequence[int]) -> tuple[slice, ...]:
    """The part of a padded tensor that a tensor of this shape fills."""
    return tuple(slice(size) for size in shape)


class StackedLinear(nn.Module):
    """K linear layers, a head for each member: y_k = W_k x_k + b_k.

    Args:
        layers: `nn.Linear`, all of one shape; they train, or are frozen and differ.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        first = layers[0]
        self.in_features, self.out_features = first.in_features, first.out_features
        self.weight = _parameter([layer.weight for layer in layers])
        """(K, out, in)"""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = _parameter(biases) if biases else None
        """(K, out), or None."""

    def forward(self, x: Tensor) -> Tensor:
        """x (K * B, ..., in) -> y (K * B, ..., out)."""
        rows = by_member(x, len(self.weight))
        if self.bias is None:
            y = torch.bmm(rows, self.weight.mT)
        else:
            y = torch.baddbmm(self.bias.unsqueeze(1), rows, self.weight.mT)
        return y.view(*x.shape[:-1], -1)


class StackedBias(nn.Module):
    """A shared frozen layer whose bias is each member's own: y_k = f(x_k) + b_k.

    Args:
        shared: does without a bias when its attribute `bias` is None.
        layers: the members' own, whose biases are taken.
    """

    def __init__(self, shared: nn.Module, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.bias = _parameter([cast(Tensor, layer.bias) for layer in layers])
        """(K, width)"""
        self.shared = shared
        self.shared.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """x (K * B, ..., in) -> y (K * B, ..., out)."""
        y: Tensor = self.shared(x)
        return (by_member(y, len(self.bias)) + self.bias.unsqueeze(1)).view_as(y)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # in_features, weight, dense_weight: what others ask the base of an adapter
            return getattr(super().__getattr__("shared"), name)


def _parameter(tensors: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(padded(tensors), requires_grad=tensors[0].requires_grad)


@torch.no_grad()
def share_base(model: nn.Module, other: nn.Module) -> None:
    """Lets `other` hold the frozen trunk of `model` instead of its own copy.

    Args:
        model: with a chain attached.
        other: another member's, with a chain of the same parts.

    Raises:
        ConfigError: the two trunks differ, so there is nothing to share.
    """
    heads = tuple(f"{name}." for name in head_names(model))
    own = dict(other.named_parameters(remove_duplicate=False)) | dict(other.named_buffers(remove_duplicate=False))
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        if tensor.requires_grad or name.startswith(heads):
            continue
        same = tensor.is_meta or torch.equal(tensor, own[name])
        if not same:
            raise ConfigError(f"{name} differs between the members, whose base cannot be shared then")
        own[name].data = tensor.data


def stack_models(model: nn.Module, members: Sequence[nn.Module]) -> None:
    """Turns a model into one that stands for all members.

    An adapter says by `stacked(twins)` what it becomes. A layer of the head, which each seed draws for itself,
    and a layer whose bias trains get forms of this module. Everything else stays, and is shared.

    Args:
        model: a model like the members', with a chain of the same parts.
        members: K models with such chains; their numbers are copied.

    Raises:
        ConfigError: something that trains, or a drawn head, has no stacked form; or the base has dropout.
    """
    _refuse_dropout(model)
    heads = tuple(f"{name}." for name in head_names(model))
    held: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            held[id(parameter)] = held.get(id(parameter), 0) + 1
    for name, module in list(model.named_modules()):
        own = {key: p for key, p in module._parameters.items() if p is not None}
        apart = [key for key, p in own.items() if p.requires_grad or f"{name}.".startswith(heads)]
        if not apart:
            continue
        if any(held[id(own[key])] > 1 for key in apart):
            raise ConfigError(f"{name}.{apart[0]} is tied to another layer's, which has no stacked form")
        replace(model, module, _stacked(name, module, [member.get_submodule(name) for member in members], apart))


def _stacked(name: str, module: Any, twins: Sequence[Any], apart: Sequence[str]) -> nn.Module:
    if hasattr(module, "stacked"):
        adapter: nn.Module = module.stacked(twins)
        return adapter.train(module.training)
    if apart == ["bias"] and (isinstance(module, nn.Linear | nn.LayerNorm) or hasattr(module, "dense_weight")):
        return StackedBias(module, twins)
    if isinstance(module, nn.Linear):
        return StackedLinear(twins)
    raise ConfigError(f"{name} ({type(module).__name__}) trains, and has no stacked form")


def _refuse_dropout(model: nn.Module) -> None:
    """Masks come from one stream of random numbers, which members alone have each for themselves."""
    for name, module in model.named_modules():
        if hasattr(module, "stacked"):
            continue  # an adapter's own dropout is its part's to refuse
        rates = {key: value for key, value in vars(module).items() if "dropout" in key or key.endswith("pdrop")}
        rates |= {"p": module.p} if isinstance(module, nn.Dropout) else {}
        for key, rate in rates.items():
            if isinstance(rate, int | float) and rate > 0:
                raise ConfigError(f"the base has dropout ({name}.{key} {rate:g}), whose masks each member draws")
