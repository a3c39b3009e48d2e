"""How large the weights of a trunk are, and how far they moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.measure.storages import counts

KEPT_UP_TO_PARAMETERS = 10**9
"""Above this, how far the weights moved is not recorded: it would take a second copy of the base."""


@torch.no_grad()
def trunk_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the effective weights of the trunk's linear layers: layer name -> (out, in) float32.

    Taken before training, it is the base state that `weight_norms` compares with.
    """
    return {name: weight.clone() for name, weight in _effective_weights(model)}


def kept_trunk(model: nn.Module) -> dict[str, Tensor] | None:
    """What training keeps of a base: `trunk_weights`, or None where a second copy would take too much memory."""
    return trunk_weights(model) if counts(model)["parameters"] <= KEPT_UP_TO_PARAMETERS else None


@torch.no_grad()
def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights under the adapters of the trunk's adapted layers: layer name -> (out, in) float32."""
    return {name: layer.weight.float().clone() for name, layer in _layers(model) if hasattr(layer, "adapters")}


@torch.no_grad()
def weight_norms(model: nn.Module, base: Mapping[str, Tensor] | None = None) -> dict[str, float]:
    """Mean Frobenius norms over the linear layers of the trunk.

    weight_norm_mean = mean over layers of ||W + delta||_F
    delta_norm_mean = mean over layers of ||W + delta - W_base||_F

    Args:
        model: plain or with a chain attached; the vocabulary projection and the head do not count.
        base: what `trunk_weights` gave for the same model before training; None leaves delta_norm_mean out.

    Raises:
        KeyError: a layer of the trunk is not in `base`.
    """
    weight_norms, delta_norms = [], []
    for name, weight in _effective_weights(model):
        weight_norms.append(torch.linalg.matrix_norm(weight))
        if base is not None:
            delta_norms.append(torch.linalg.matrix_norm(weight - base[name].to(weight.device)))
    norms = {"weight_norm_mean": torch.stack(weight_norms).mean().item()}
    if base is not None:
        norms["delta_norm_mean"] = torch.stack(delta_norms).mean().item()
    return norms


def _effective_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    from lowrank.methods.adapted import dense_weight

    for name, layer in _layers(model):
        if hasattr(layer, "adapters"):
            yield name, (layer.weight + layer.delta_weight()).float()
        else:
            yield name, dense_weight(layer).float()


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The linear layers of the trunk, adapted or plain."""
    # Imported here because it reads transformers, which a caller of the counters may not need.
    from lowrank.targets import head_names, is_linear, output_embedding

    heads, vocabulary = head_names(model), output_embedding(model)
    for name, module in model.named_modules():
        if name.endswith(".base") or module is vocabulary or name.split(".")[0] in heads:
            continue
        if is_linear(module):
            yield name, module
