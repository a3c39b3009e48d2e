"""The few fixed inputs on which an exported model must say what the run says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

EXAMPLES, TOKENS = 4, 16


def probe_inputs(model: nn.Module) -> dict[str, Tensor]:
    """What `model(**inputs)` takes: random tokens, half of the second row padded, or random pixels.

    Args:
        model: a transformers model.
    """
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    if getattr(model, "main_input_name", "input_ids") == "pixel_values":
        shape = (EXAMPLES, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    length = min(TOKENS, getattr(config, "max_position_embeddings", TOKENS))
    pad = config.pad_token_id or 0
    tokens = torch.randint(config.vocab_size - 1, (EXAMPLES, length), generator=generator)
    tokens += tokens >= pad  # every token but the padding
    mask = torch.ones_like(tokens)
    tokens[1, length // 2 :], mask[1, length // 2 :] = pad, 0
    return {"input_ids": tokens, "attention_mask": mask}


@torch.no_grad()
def probe_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The logits on them in float32; what is said at padding counts for nothing and is left out."""
    logits: Tensor = model(**inputs).logits.float()
    if logits.ndim == 3:
        logits = logits[inputs["attention_mask"].bool()]
    return logits.contiguous()
