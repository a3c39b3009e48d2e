"""SparseLoRA by its definition: everything is computed densely, then what should not have been is set to zero.

The channels come from the exact activations. Nothing here is shared with `lowrank.methods` but the
names of the layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROLES: dict[str, dict[str, str]] = {
    "bert": {
        "prefix": "bert.encoder.layer",
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "o": "attention.output.dense",
        "up": "intermediate.dense",
        "down": "output.dense",
    },
    "distilbert": {
        "prefix": "distilbert.transformer.layer",
        "q": "attention.q_lin",
        "k": "attention.k_lin",
        "v": "attention.v_lin",
        "o": "attention.out_lin",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
    },
    "gpt2": {
        "prefix": "transformer.h",
        "qkv": "attn.c_attn",
        "o": "attn.c_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
    "llama": {
        "prefix": "model.layers",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    "vit": {
        "prefix": "vit.layers",
        "q": "attention.q_proj",
        "k": "attention.k_proj",
        "v": "attention.v_proj",
        "o": "attention.o_proj",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    },
}


def act(family: str, x: Tensor) -> Tensor:
    if family == "llama":
        return functional.silu(x)
    return functional.gelu(x, approximate="tanh" if family == "gpt2" else "none")


def at_rank(model: nn.Module, family: str, rank: int) -> None:
    """Cuts the weights of the trunk to a rank, so that an estimate of that rank is exact."""
    for kind, name in ROLES[family].items():
        for index in range(2) if kind != "prefix" else ():
            weight = model.get_submodule(f"{ROLES[family]['prefix']}.{index}.{name}").weight
            # q, k and v in one (GPT-2) are three weights to SparseLoRA.
            for part in weight.data.chunk(3, 1) if kind == "qkv" else [weight.data]:
                left, values, right = torch.linalg.svd(part, full_matrices=False)
                part.copy_((left[:, :rank] * values[:rank]) @ right[:rank])


class Reference:
    """Hooks on the base layers of a model that LoRA is attached to.

    Args:
        model: with its adapters.
        family: its family.
        keep: branch -> share of channels that is kept.
        heads: query heads and key heads.
    """

    def __init__(self, model: nn.Module, family: str, keep: dict[str, float], heads: tuple[int, int]) -> None:
        self.family, self.keep, self.heads = family, keep, heads
        self.context = self.scored = torch.empty(0)
        self.chosen: dict[tuple[int, str], set[int]] = {}
        for index in range(2):
            layers = {
                kind: model.get_submodule(f"{ROLES[family]['prefix']}.{index}.{name}")
                for kind, name in ROLES[family].items()
                if kind != "prefix"
            }
            self._hook(index, {kind: getattr(layer, "base", layer) for kind, layer in layers.items()})

    def tokens(self, context: Tensor, real: Tensor) -> None:
        """context, real (B, T) bool, for the next forward pass."""
        self.context, self.scored = context, context & real

    def _hook(self, index: int, layers: dict[str, Any]) -> None:
        masks: dict[str, Tensor] = {}

        def norms(values: Tensor) -> Tensor:
            return values[self.scored].square().sum(0).sqrt()

        def top(scores: Tensor, branch: str) -> Tensor:
            count = max(1, round(self.keep[branch] * len(scores)))
            mask = torch.zeros(len(scores), dtype=torch.bool)
            mask[scores.sort(descending=True).indices[:count]] = True
            self.chosen[index, branch] = set(mask.nonzero().flatten().tolist())
            return mask

        def zero(values: Tensor, mask: Tensor) -> Tensor:
            return values.masked_fill(self.context[..., None] & ~mask, 0.0)

        def attention(x: Tensor) -> None:
            query_heads, key_heads = self.heads
            with torch.no_grad():
                if "qkv" in layers:
                    q, k, v = self._plain(layers["qkv"], x).chunk(3, -1)
                else:
                    q, k, v = (self._plain(layers[kind], x) for kind in "qkv")
                dim = q.shape[-1] // query_heads
                owner = [head * key_heads // query_heads for head in range(query_heads)]
                paired = torch.zeros(key_heads, dim, dtype=q.dtype)
                for head, key_head in enumerate(owner):
                    paired[key_head] += norms(q).view(query_heads, dim)[head] / (query_heads // key_heads)
                masks["k"] = top(paired.flatten() * norms(k), "qk")
                masks["v"] = top(norms(v), "vo")
                for wide, narrow in (("q", "k"), ("o", "v")):
                    masks[wide] = masks[narrow].view(key_heads, dim)[owner].flatten()
                masks["qkv"] = torch.cat([masks["q"], masks["k"], masks["v"]])

        def feed_forward(x: Tensor) -> None:
            with torch.no_grad():
                up = self._plain(layers["up"], x)
                h = act(self.family, self._plain(layers["gate"], x)) * up if "gate" in layers else act(self.family, up)
                masks["gate"] = masks["up"] = masks["down"] = top(norms(h), "ffn")

        for first, choose in (
            ("qkv" if "qkv" in layers else "q", attention),
            ("gate" if "gate" in layers else "up", feed_forward),
        ):
            layers[first].register_forward_pre_hook(lambda module, inputs, choose=choose: choose(inputs[0]))
        for kind in set(layers) - {"o", "down"}:
            layers[kind].register_forward_hook(lambda module, inputs, y, kind=kind: zero(y, masks[kind]))
        for kind in ("o", "down"):
            layers[kind].register_forward_pre_hook(lambda module, inputs, kind=kind: (zero(inputs[0], masks[kind]),))

    def _plain(self, layer: Any, x: Tensor) -> Tensor:
        weight = layer.weight.t() if isinstance(layer, nn.Linear) else layer.weight
        y = x @ weight
        return y if layer.bias is None else y + layer.bias
