"""Accounts for a training step without memory for the model and without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

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

    Args:
        build: returns the base model; called with the meta device as default, so it must not read weights.
        options: the chain, as `RunSpec.chain` holds it.
        batch: tensors of the right shapes and dtypes, on any device. Values matter in one place: a real
            `attention_mask` of ones is treated as transformers treats it, as no mask; a mask without
            values (meta) is one that hides something.
        loss: (model, batch) -> scalar; the model's own by default.
        precision: `bf16` runs the forward pass under autocast.
        first_step: number of the step, for parts whose work depends on it.

    Returns:
        An `Accounting` without times and peaks.

    Raises:
        ConfigError: a part's work depends on the values of tensors; such a chain has to be measured.
    """
    chain = Chain.build(options)
    with torch.device("meta"):
        model = build()
    chain.attach(model.train())
    unmasked = _hides_nothing(batch)

    def fake_loss(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model, {key: value for key, value in batch.items() if key != "attention_mask" or not unmasked})

    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _Draws():  # type: ignore[no-untyped-call]
            _to_fake_cpu(model)
            fake_batch = {key: torch.empty(value.shape, dtype=value.dtype) for key, value in batch.items()}
            optimizer = chain.optimizer(TrainSpec(lr=1e-3, steps=1))
            step = Step(model, chain, optimizer, fake_batch, fake_loss, precision, first_step)
            step.take()
            return Accounting(origin="predicted", device="cpu", **step.account())
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ConfigError(
            f"chain {chain.name}: its step depends on values ({error}), which a prediction does not have; measure it"
        ) from error


class _Draws(TorchDispatchMode):
    """Lets a step read the value of a random draw: being random, it decides no size."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and getattr(args[0], "is_draw", False):
            return 0
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.randint:
            result.is_draw = True
        return result


def _hides_nothing(batch: Batch) -> bool:
    mask = batch.get("attention_mask")
    return mask is not None and mask.device.type != "meta" and bool((mask == 1).all())


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
