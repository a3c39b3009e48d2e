"""Attaching either happens or leaves the model as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def undone_on_failure(model: nn.Module) -> Iterator[None]:
    """Puts modules, parameters, buffers and what trains back when the block raises.

    Attaching replaces and adds; it does not write into the numbers of a weight, so references are enough.
    """
    tables = [(table, dict(table)) for module in model.modules() for table in _tables(module)]
    tables.append((vars(model), dict(vars(model))))  # the chain that it knows
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for table, before in tables:
            table.clear()
            table.update(before)
        for parameter, flag in trains:
            parameter.requires_grad_(flag)
        raise


def _tables(module: nn.Module) -> tuple[dict[str, object], ...]:
    return (module._modules, module._parameters, module._buffers)  # type: ignore[return-value]
