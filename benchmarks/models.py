"""The shapes that methods are measured on, and an arm: one optimizer step of one model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from benchmarks.device import device, on_gpu
from lowrank import registry
from lowrank.measure.step import Batch, Step, model_loss
from lowrank.measure.storages import model_tensors, optimizer_bytes, saved_tensors, storage_bytes
from lowrank.methods.chain import Chain
from lowrank.spec import TrainSpec
from lowrank.tasks import TASKS, Task

TRAIN = TrainSpec(lr=1e-4, steps=1)


@dataclass(frozen=True)
class Shape:
    """A model and a batch."""

    name: str
    family: str
    layers: int
    width: int
    hidden: int
    vocabulary: int
    examples: int
    tokens: int

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Always the same weights; no dropout."""
        torch.manual_seed(0)
        heads = max(2, self.width // 64)
        model: nn.Module
        if self.family == "llama":
            model = LlamaForCausalLM(
                LlamaConfig(
                    hidden_size=self.width,
                    intermediate_size=self.hidden,
                    num_hidden_layers=self.layers,
                    num_attention_heads=heads,
                    vocab_size=self.vocabulary,
                    max_position_embeddings=self.tokens,
                    use_cache=False,
                )
            )
        else:
            model = DistilBertForSequenceClassification(
                DistilBertConfig(
                    dim=self.width,
                    hidden_dim=self.hidden,
                    n_layers=self.layers,
                    n_heads=heads,
                    vocab_size=self.vocabulary,
                    max_position_embeddings=512,
                    num_labels=2,
                    dropout=0.0,
                    attention_dropout=0.0,
                    seq_classif_dropout=0.0,
                )
            )
        return model.to(device(), dtype).train()

    def batch(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(self.vocabulary, (self.examples, self.tokens), generator=generator).to(device())
        if self.family == "llama":
            return {"input_ids": tokens, "labels": tokens}
        return {"input_ids": tokens, "labels": torch.randint(2, (self.examples,), generator=generator).to(device())}

    @property
    def linear(self) -> list[str]:
        """The linear layers of a block, as PEFT wants them named."""
        if self.family == "llama":
            return ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        return ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]

    def __str__(self) -> str:
        size = f"{self.layers} layers, width {self.width}, {self.examples} x {self.tokens} tokens"
        return f"{self.name}: {'LLaMA' if self.family == 'llama' else 'DistilBERT'}, {size}"


@dataclass(frozen=True)
class Size:
    """The shapes and rounds of one run of the benchmark."""

    quick: bool
    distilbert: Shape
    small: Shape
    llama: Shape
    rank: int
    """Of GaLore."""
    groups: tuple[int, int]
    """Of VeLoRA, for v and down."""
    rounds: int
    """Of arms that take a second or more; shorter ones take a multiple."""


FULL = Size(
    quick=False,
    distilbert=Shape("D", "distilbert", 6, 768, 3072, 30522, 16, 64),
    small=Shape("S", "distilbert", 4, 256, 1024, 30522, 16, 64),
    llama=Shape("L", "llama", 8, 512, 1376, 32000, 8, 256),
    rank=128,
    groups=(64, 96),
    rounds=4,
)

GPU = Size(
    quick=False,
    distilbert=Shape("D", "distilbert", 6, 768, 3072, 30522, 64, 128),
    small=FULL.small,
    llama=Shape("L", "llama", 24, 2048, 5461, 32000, 4, 512),
    rank=128,
    groups=(64, 96),
    rounds=12,
)
"""Batches that fill a GPU, but for `small`."""

QUICK = Size(
    quick=True,
    distilbert=Shape("D", "distilbert", 1, 64, 128, 50, 8, 4),
    small=Shape("S", "distilbert", 1, 64, 128, 50, 8, 4),
    llama=Shape("L", "llama", 1, 64, 128, 50, 8, 4),
    rank=8,
    groups=(8, 8),
    rounds=2,
)


class Arm:
    """A model, its optimizer and one batch; calling it takes a step."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], autocast: bool = False
    ) -> None:
        self.model, self.optimizer, self.batch, self.autocast = model, optimizer, batch, autocast

    def forward(self) -> Tensor:
        with torch.autocast(device().type, torch.bfloat16, enabled=self.autocast):
            loss: Tensor = self.model(**self.batch).loss
        return loss

    def __call__(self) -> None:
        self.forward().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def saved_bytes(self) -> int:
        kept = list(model_tensors(self.model))
        with saved_tensors() as saved:
            loss = self.forward()
        found = storage_bytes(saved.held(), exclude=kept)
        del loss
        return found

    def state_bytes(self) -> int:
        return optimizer_bytes(self.optimizer)


class ChainArm(Arm):
    """A chain of ours, stepped as the training loop steps it."""

    def __init__(
        self, model: nn.Module, batch: dict[str, Tensor], *parts: Any, autocast: bool = False, task: str | None = None
    ) -> None:
        self.chain = Chain.build([registry.parse_options(part) for part in parts]).attach(model)
        super().__init__(model, self.chain.optimizer(TRAIN), batch, autocast)
        precision: Any = "bf16" if autocast else "fp32"
        loss = model_loss if task is None else functools.partial(mean_loss, TASKS[task])
        self.one = Step(model, self.chain, self.optimizer, batch, loss, precision)

    def forward(self) -> Tensor:
        return self.one.forward()

    def __call__(self) -> None:
        self.one.take()


def mean_loss(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    """The loss as the training loop takes it; without a task an arm takes the model's own, as its peers do."""
    return task.loss(model, batch) / task.units(batch)


def peer_arm(model: nn.Module, batch: dict[str, Tensor], autocast: bool = False) -> Arm:
    """A peer's model under torch's fastest AdamW, over what it trains."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Arm(model, torch.optim.AdamW(trained, lr=TRAIN.lr, fused=True), batch, autocast)


Build = Callable[[], Arm]


def multiplies_bf16() -> str | None:
    """What multiplies bfloat16 by itself: a GPU, or the CPU's instruction set; None where nothing does."""
    if on_gpu():
        return "CUDA"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags), None)
