"""The tokenizer beside an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lowrank.data.tokens import END_TOKENS, PAD_TOKENS, find_token

TEXT = "A river flows to the sea, and 12 boats follow it."
"""What the fresh process tokenises, to prove that the tokens are the same."""


def write_tokenizer(folder: Path, files: Path, model: nn.Module) -> dict[str, Any] | None:
    """Writes the card's tokenizer as transformers loads it.

    Args:
        folder: of the export.
        files: of the card that holds the tokenizer.
        model: whose positions limit the length.

    Returns:
        A text and its ids, or None where the model reads no text.
    """
    if not (files / "tokenizer.json").is_file():
        return None
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_file(str(files / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = {}
    for role, names in (("pad_token", PAD_TOKENS + END_TOKENS), ("eos_token", END_TOKENS)):
        token = find_token(tokenizer, names)
        if token is not None:
            special[role] = tokenizer.id_to_token(token)
    config: Any = model.config
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=getattr(config, "max_position_embeddings", None), **special
    )
    wrapped.save_pretrained(folder)
    return {"text": TEXT, "input_ids": tokenizer.encode(TEXT).ids}
