"""Models of a few thousand parameters, one of each family the parts must work on, without dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

WIDTH, VOCABULARY, TOKENS, IMAGE = 16, 40, 6, 8


class NanoGPT(nn.Module):
    """nanoGPT's shape: plain nn.Linear, a bias everywhere but in the head, the head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(2))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        nn.init.normal_(self.wte.weight, std=0.1)
        self.lm_head.weight = self.wte.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        hidden = self.wte(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.lm_head(self.ln_f(hidden))
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return type("Output", (), {"logits": logits, "loss": loss})


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.c_fc, self.c_out = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        x = x + self.c_proj(functional.scaled_dot_product_attention(query, key, value, is_causal=True))
        return x + self.c_out(functional.gelu(self.c_fc(self.ln_2(x))))


def gpt2() -> nn.Module:
    config = GPT2Config(
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        n_positions=8,
        vocab_size=VOCABULARY,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


def llama() -> nn.Module:
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=VOCABULARY,
        max_position_embeddings=8,
    )
    return LlamaForCausalLM(config)


def bert() -> nn.Module:
    config = BertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=VOCABULARY,
        max_position_embeddings=8,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def distilbert() -> nn.Module:
    config = DistilBertConfig(
        dim=WIDTH,
        n_layers=2,
        n_heads=2,
        hidden_dim=24,
        vocab_size=VOCABULARY,
        max_position_embeddings=8,
        num_labels=3,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
    )
    return DistilBertForSequenceClassification(config)


def vit() -> nn.Module:
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=IMAGE,
        patch_size=4,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTForImageClassification(config)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "bert": bert,
    "distilbert": distilbert,
    "gpt2": gpt2,
    "llama": llama,
    "nanogpt": NanoGPT,
    "vit": vit,
}


def make(family: str, seed: int = 0) -> nn.Module:
    """A model in double precision, so that identities hold to 1e-10 and no tolerance hides a fault."""
    torch.manual_seed(seed)
    model = FAMILIES[family]().double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero as transformers draws them, which would hide a lost bias
            nn.init.normal_(parameter, std=0.1)
    return model


def batch(family: str, size: int, seed: int = 0) -> dict[str, Tensor]:
    """What `model(**batch)` takes, with labels."""
    generator = torch.Generator().manual_seed(seed)
    if family == "vit":
        pixels = torch.randn(size, 3, IMAGE, IMAGE, generator=generator, dtype=torch.float64)
        return {"pixel_values": pixels, "labels": torch.randint(3, (size,), generator=generator)}
    tokens = torch.randint(VOCABULARY, (size, TOKENS), generator=generator)
    if family in ("bert", "distilbert"):
        return {"input_ids": tokens, "labels": torch.randint(3, (size,), generator=generator)}
    return {"input_ids": tokens, "labels": tokens}
