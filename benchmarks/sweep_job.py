"""One process of the sweep's benchmark: some points of a sweep, trained in one of three ways.

A process of its own for each measurement, so that imports and memory count. Nothing heavy is imported above the
way that is asked for.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

RANKS, RATES = (4, 8, 16), (1e-4, 3e-4, 1e-3, 3e-3)
POINTS = list(itertools.product(RANKS, RATES))
"""The sweep: (rank, learning rate)."""

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"layers": 2, "width": 128, "hidden": 512, "vocabulary": 8000, "rows": 8, "tokens": 32, "steps": 20},
    "encoder": {"layers": 2, "width": 384, "hidden": 1536, "vocabulary": 30522, "rows": 12, "tokens": 12, "steps": 20},
    "tiny": {"layers": 1, "width": 16, "hidden": 32, "vocabulary": 64, "rows": 2, "tokens": 4, "steps": 2},
}
"""`encoder` is what lr_ratio trains at laptop scale."""


def build(shape: dict[str, Any]) -> Any:
    """A BERT classifier with random weights, always the same, without dropout; in float32 if the shape says nothing."""
    import torch
    from transformers.models.bert.modeling_bert import BertConfig, BertForSequenceClassification

    from benchmarks.device import device

    torch.manual_seed(0)
    return (
        BertForSequenceClassification(
            BertConfig(
                hidden_size=shape["width"],
                intermediate_size=shape["hidden"],
                num_hidden_layers=shape["layers"],
                num_attention_heads=max(2, shape["width"] // 64),
                vocab_size=shape["vocabulary"],
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                num_labels=2,
            )
        )
        .to(device(), getattr(torch, shape.get("dtype", "float32")))
        .train()
    )


def batches(shape: dict[str, Any]) -> list[dict[str, Any]]:
    """One batch a step, always the same ones."""
    import torch

    from benchmarks.device import device

    generator = torch.Generator().manual_seed(1)
    size = (shape["rows"], shape["tokens"])
    return [
        {
            "input_ids": torch.randint(shape["vocabulary"], size, generator=generator).to(device()),
            "labels": torch.randint(2, size[:1], generator=generator).to(device()),
        }
        for _ in range(shape["steps"])
    ]


def attached(shape: dict[str, Any], rank: int) -> Any:
    """A fresh model with our LoRA on it."""
    from lowrank import registry
    from lowrank.methods.chain import Chain

    return Chain.build([registry.parse_options({"part": "lora", "rank": rank})]).attach(build(shape))


def peer(shape: dict[str, Any], rank: int, rate: float) -> None:
    """As a user's script does it: PEFT and the Trainer of transformers."""
    import tempfile

    from transformers import Trainer, TrainingArguments

    model, _ = peer_model(shape, rank)
    rows = [{key: tensor[i] for key, tensor in batch.items()} for batch in batches(shape) for i in range(shape["rows"])]
    with tempfile.TemporaryDirectory() as folder:
        told = TrainingArguments(
            folder,
            max_steps=shape["steps"],
            per_device_train_batch_size=shape["rows"],
            learning_rate=rate,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model=model, args=told, train_dataset=rows).train()


def peer_model(shape: dict[str, Any], rank: int) -> tuple[Any, Any]:
    """The same model under PEFT, and torch's fastest AdamW over what it trains."""
    import peft
    import torch

    config = peft.LoraConfig(task_type="SEQ_CLS", r=rank, target_modules=["query", "key", "value", "dense"])
    model: Any = peft.get_peft_model(build(shape), config)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)


def apart(shape: dict[str, Any], points: list[tuple[int, float]]) -> None:
    """Our runs, one after another in one process."""
    from lowrank.spec import TrainSpec

    for rank, rate in points:
        chain = attached(shape, rank)
        optimizer = chain.optimizer(TrainSpec(lr=rate, steps=1))
        for batch in batches(shape):
            chain.attached(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def together(shape: dict[str, Any], points: list[tuple[int, float]]) -> None:
    """Our runs, in stacks of the size that training chooses."""
    from lowrank.stacks import by_tokens

    size = by_tokens(shape["rows"] * shape["tokens"])
    for index in range(0, len(points), size):
        step = stack(shape, points[index : index + size])
        for batch in batches(shape):
            step(batch)


def stack(shape: dict[str, Any], points: list[tuple[int, float]]) -> Any:
    """A function that takes one step of all points, given a batch that each of them sees."""
    from lowrank.methods.stacked import share_base
    from lowrank.methods.stacked_chain import StackedChain
    from lowrank.spec import TrainSpec
    from lowrank.tasks import Classification, forward
    from lowrank.train.members import join, sums
    from lowrank.train.stacked_adamw import StackedAdamW

    chains = [attached(shape, rank) for rank, _ in [points[0], *points]]
    for chain in chains[1:]:
        share_base(chains[0].attached, chain.attached)
    whole = StackedChain(chains[0], chains[1:])
    trains = [TrainSpec(lr=rate, steps=1) for _, rate in points]
    adamw = StackedAdamW(whole.trainable(), trains, shape["steps"])
    rows, task = shape["rows"], Classification()

    def step(batch: dict[str, Any]) -> None:
        joined = join([batch] * len(points), 0)
        losses, _ = task.losses(forward(whole.attached, joined), joined)
        (sums(losses, [rows] * len(points)) / rows).sum().backward()
        adamw.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description="One process of the sweep's benchmark.")
    parser.add_argument("way", choices=("peer", "apart", "together"))
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--point", type=int, help="the only point; otherwise all")
    told = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if told.way != "peer":
        from lowrank.measure import keep_freed_memory

        keep_freed_memory()
    shape = SHAPES[told.shape]
    points = POINTS if told.point is None else [POINTS[told.point]]
    if told.way == "peer":
        for rank, rate in points:
            peer(shape, rank, rate)
    else:
        {"apart": apart, "together": together}[told.way](shape, points)


if __name__ == "__main__":
    main()
