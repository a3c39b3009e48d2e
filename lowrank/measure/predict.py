"""Accounts for a training step without memory for the model and without computing anything."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowrank.errors import ConfigError
from lowrank.measure.step import Accounting, Batch, Loss, Step, model_loss
from lowrank.methods.chain import Chain
from lowrank.spec import PartOptions, TrainSpec


def predict_step(
    build: Callable[[], nn.Module],
    options: Sequence[PartOptions],
    batch: Batch,
    *,
    loss: Loss = model_loss,
    precision: Literal["fp32", "bf16"] = "fp32",
    first_step: int = 0,
) -> Accounting:
    """What `measure_step` would find on a CPU, from shapes alone.

    The model is built on the meta device, the chain is attached to it, and its tensors are replaced
    by fake ones that say they lie on the CPU. The same step then runs over them: every kernel is
    chosen as on a CPU, so what it saves has the size that it has there, but nothing is allocated.
    Only what follows from integers of the batch, such as which tokens have a label, is computed.

    Args:
        build: returns the base model; called with the meta device as default, so it must not read weights. Where it
            is `skeleton` of a `ModelSpec` with `gradient_checkpointing`, activations take
            `saved_activation_bytes` + `recomputed_activation_bytes` at most.
        options: the chain, as `RunSpec.chain` holds it.
        batch: tensors of the right shapes and dtypes, on any device. Integers may be on the meta device, without
            values, where no size depends on them. A mask without values is one that hides something, while
            transformers treats a mask of ones as no mask; SparseLoRA needs the values of labels and mask.
        loss: (model, batch) -> scalar; the model's own by default.
        precision: `bf16` runs the forward pass under autocast.
        first_step: number of the step, for parts whose work depends on it.

    Returns:
        An `Accounting` without times and peaks.

    Raises:
        ConfigError: the size of a part's work depends on values of the model, or of a batch that has none.
    """
    chain = Chain.build(options)
    with torch.device("meta"):
        model = build()
    chain.attach(model.train())
    try:
        with faked(model):
            seen = {key: told(value) for key, value in batch.items()}
            optimizer = chain.optimizer(TrainSpec(lr=1e-3, steps=1))
            step = Step(model, chain, optimizer, seen, loss, precision, first_step)
            if any(hasattr(part, "before_step") for part in chain.parts):
                step.take()  # such a part looks at a first batch longer, or makes what it keeps
            return Accounting(origin="predicted", device="cpu", **step.account())
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ConfigError(
            f"chain {chain.name}: its step depends on values ({error}), which a prediction does not have; "
            "measure it, or give the batch its values"
        ) from error


@contextlib.contextmanager
def faked(model: nn.Module) -> Iterator[None]:
    """Inside, a model from the meta device acts as if it lay on the CPU, and nothing is allocated or computed.

    Args:
        model: its parameters and buffers are replaced by fake ones, for good.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _Values():  # type: ignore[no-untyped-call]
        _to_fake_cpu(model)
        yield


_CONSTANTS = (torch.ops.aten.arange, torch.ops.aten.full, torch.ops.aten.ones, torch.ops.aten.zeros)


class _Values(TorchDispatchMode):
    """Lets a step read the values that decide its sizes, and those that decide nothing.

    What follows from the batch alone, or from integers, such as which tokens have a label, is really
    computed. A random draw may be read: being random, it decides no size.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if tensors and not any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in tensors):
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _places(args[1]))
        if func is torch.ops.aten.index_put.default:  # autograd writes in place where no mode looks on
            func = torch.ops.aten.index_put_.default
        if func is torch.ops.aten._local_scalar_dense.default and getattr(args[0], "is_draw", False):
            return 0
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _CONSTANTS and not result.is_floating_point() and not result.is_meta:
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.randint:
            result.is_draw = True
        return result


def _places(index: Sequence[Tensor | None]) -> list[Tensor | None]:
    """An index with its masks, whose values are known, as the places that they name."""
    found: list[Tensor | None] = []
    for each in index:
        if each is not None and each.dtype is torch.bool and not isinstance(each, FakeTensor) and not each.is_meta:
            with unset_fake_temporarily():
                found += each.nonzero().unbind(1)
        else:
            found.append(each)
    return found


def told(value: Tensor) -> Tensor:
    """A tensor of a batch as a step sees it: with its values where these may decide something."""
    if value.is_meta or value.is_floating_point():
        return torch.empty(value.shape, dtype=value.dtype)
    return value.cpu()


def _to_fake_cpu(model: nn.Module) -> None:
    """Replaces every parameter and buffer by an uninitialised one on the CPU; shared tensors stay shared."""
    replaced: dict[int, Any] = {}
    for module in model.modules():
        held: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in held:
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in replaced:
                    new = torch.empty_strided(old.size(), old.stride(), dtype=old.dtype, device="cpu")
                    is_parameter = isinstance(old, nn.Parameter)
                    replaced[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
                tensors[name] = replaced[id(old)]
