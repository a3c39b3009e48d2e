"""The Hugging Face Trainer with a chain: the losses of our loop, every hook, checkpoints, refusals."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from lowrank import registry
from lowrank.data.loader import TaskBatches
from lowrank.errors import ConfigError
from lowrank.methods.chain import Chain
from lowrank.methods.part import make as make_part
from lowrank.spec import DataSpec, TrainSpec
from lowrank.tasks import task
from lowrank.train.loop import Loop
from lowrank.trainer import ChainTrainer, loop_trainer
from tests.tiny_models import TOKENS, VOCABULARY, make
from tests.tolerances import BIT_EXACT, MERGE

ROWS, BATCH = 22, 8  # the third step of each epoch has 6 rows

LORA: dict[str, Any] = {"part": "lora", "rank": 2}
CHAINS: dict[str, list[Any]] = {
    "full": ["full"],
    "lora": [{**LORA, "dropout": 0.2}],
    "velora": ["full", {"part": "velora", "num_groups": 4}],
    "contextual_sparsity": [
        LORA,
        {"part": "contextual_sparsity", "estimator_rank": 2, "dense_fraction": 0.3, "dense_tokens": "none"},
    ],
    "prune": [LORA, {"part": "prune", "method": "l1", "l1_lambda": 0.01, "start": 2, "every": 2}],
    "relora": [LORA, {"part": "relora", "merge_every": 2, "restart_warmup_steps": 1}],
    "alpha_merge": [LORA, {"part": "alpha_merge", "merge_every": 2}],
    "lte": [{"part": "lte", "num_lora_heads": 2, "rank": 2, "merge_every": 2}],
    "galore": ["full", {"part": "galore", "rank": 2, "update_gap": 3}],
    "paged_adamw": [LORA, "paged_adamw"],
}

SAVED = {**CHAINS, "velora": ["full", {"part": "velora", "num_groups": 4, "layers": ["c_attn"]}]}
"""The same for a model whose head is tied to its embedding, and whose q, k and v are one layer."""


class Rows(TaskBatches):
    """Rows of random tokens, in memory."""

    def __init__(self, task_name: str) -> None:
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(1, VOCABULARY, (ROWS, TOKENS), generator=generator)
        self.classes = torch.randint(3, (ROWS,), generator=generator)
        self.spec, self.task, self.pad_id = DataSpec(card="rows"), task_name, 0

    @property
    def rows(self) -> int:
        return ROWS

    def by_length(self) -> Tensor:
        return torch.arange(ROWS)

    def micro_batches(self, rows: Tensor, size: int, **_: Any) -> Any:
        for chunk in rows.split(size):
            tokens = self.tokens[chunk]
            labels = self.classes[chunk] if self.task == "classification" else tokens
            yield {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def built(family: str, parts: list[Any], dropout: float = 0.0) -> tuple[nn.Module, Chain]:
    model = make(family).float()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model, Chain([make_part(registry.parse_options(part)) for part in parts]).attach(model, 0)


def settings(**options: Any) -> TrainSpec:
    length = {} if "steps" in options else {"epochs": 2}
    return TrainSpec(**{"lr": 1e-2, "batch_size": BATCH, **length, **options})


def loop_losses(family: str, parts: list[Any], train: TrainSpec, dropout: float = 0.0) -> tuple[Tensor, Chain]:
    model, chain = built(family, parts, dropout)
    name = "classification" if family in ("bert", "distilbert") else "causal_lm"
    loop = Loop(model, chain, task(name), train, Rows(name), Rows(name), 3, torch.device("cpu"))
    loop.run(lambda loop: None, "loop")
    return torch.tensor([row["train_loss"] for row in loop.state.history]), chain


def trainer_losses(
    family: str, parts: list[Any], train: TrainSpec, folder: Path, dropout: float = 0.0
) -> tuple[Tensor, Chain]:
    model, chain = built(family, parts, dropout)
    name = "classification" if family in ("bert", "distilbert") else "causal_lm"
    trainer = loop_trainer(model, chain, task(name), train, Rows(name), 3, folder, use_cpu=True, disable_tqdm=True)
    trainer.train()
    return torch.tensor([row["loss"] for row in trainer.state.log_history if "loss" in row]), chain


def check_same(family: str, parts: list[Any], train: TrainSpec, folder: Path, dropout: float = 0.0) -> None:
    ours, chain = loop_losses(family, parts, train, dropout)
    theirs, other = trainer_losses(family, parts, train, folder, dropout)
    assert len(ours) == len(theirs) == 6
    BIT_EXACT.check(theirs, ours)
    for name, tensor in chain.changed().items():
        BIT_EXACT.check(other.changed()[name], tensor)


@pytest.mark.parametrize("name", CHAINS)
def test_the_losses_and_weights_are_those_of_our_loop(name: str, tmp_path: Path) -> None:
    check_same("llama", CHAINS[name], settings(clip_norm=0.5, schedule="linear", warmup_steps=2), tmp_path)


@pytest.mark.parametrize("name", ["lora", "velora", "prune", "lte", "relora", "contextual_sparsity"])
def test_with_micro_batches(name: str, tmp_path: Path) -> None:
    check_same("llama", CHAINS[name], settings(micro_batch_size=2, clip_norm=0.5), tmp_path)


def test_with_micro_batches_of_uneven_size(tmp_path: Path) -> None:
    check_same("llama", CHAINS["lora"], settings(micro_batch_size=3), tmp_path)


def test_with_dropout_and_a_classifier(tmp_path: Path) -> None:
    check_same("distilbert", ["full"], settings(micro_batch_size=4), tmp_path, dropout=0.3)


def test_by_steps(tmp_path: Path) -> None:
    check_same("llama", CHAINS["lora"], settings(steps=6, schedule="cosine", min_lr_fraction=0.1), tmp_path)


def test_the_jagged_schedule_of_relora(tmp_path: Path) -> None:
    train = settings(schedule="jagged_cosine", cycle_steps=2, warmup_steps=1)
    check_same("llama", CHAINS["relora"], train, tmp_path)


def options(folder: Path, **more: Any) -> TrainingArguments:
    fixed = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    return TrainingArguments(output_dir=str(folder), per_device_train_batch_size=4, **{**fixed, **more})


class Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Single examples, as a user of the Trainer has them."""

    def __init__(self, count: int = 16) -> None:
        self.tokens = torch.randint(1, VOCABULARY, (count, TOKENS), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def test_a_users_own_arguments_decide_the_optimizers_settings_and_the_schedule(tmp_path: Path) -> None:
    model, chain = built("llama", CHAINS["galore"])
    args = options(tmp_path, learning_rate=3e-3, weight_decay=0.1, num_train_epochs=1)
    trainer = ChainTrainer(model=model, chain=chain, args=args, train_dataset=Examples())
    trainer.train()
    assert "Galore" in type(trainer.optimizer.optimizer).__name__
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.1}
    rates = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    assert rates == pytest.approx([3e-3, 2.25e-3, 1.5e-3, 0.75e-3])  # the Trainer's own default, linear


def test_evaluation_sees_what_the_parts_say(tmp_path: Path) -> None:
    model, chain = built("llama", CHAINS["lte"])
    trainer = ChainTrainer(
        model=model, chain=chain, args=options(tmp_path), train_dataset=Examples(), eval_dataset=Examples(5)
    )
    trainer.train()
    with chain.eval_mode():
        tokens = Examples(5).tokens
        expected = model(input_ids=tokens, labels=tokens).loss
    entered = []
    chain.parts[0].eval_mode = lambda model: entered.append(1) or contextlib.nullcontext()  # type: ignore[attr-defined]
    found = trainer.evaluate()["eval_loss"]  # 5 examples, which 2 heads do not divide
    assert entered
    MERGE.check(torch.tensor(found), expected)


@pytest.mark.parametrize("name", ["lora", "prune", "relora", "alpha_merge", "lte", "velora", "galore"])
def test_a_resumed_run_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    def trainer(folder: Path, **more: Any) -> ChainTrainer:
        model, chain = built("gpt2", SAVED[name])
        return loop_trainer(
            model,
            chain,
            task("causal_lm"),
            settings(),
            Rows("causal_lm"),
            3,
            folder,
            use_cpu=True,
            disable_tqdm=True,
            **more,
        )

    straight = trainer(tmp_path / "straight", save_strategy="steps", save_steps=4)
    straight.train()
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-4"))
    assert resumed.state.global_step == 6
    for key, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key


def test_a_checkpoint_of_another_chain_is_refused(tmp_path: Path) -> None:
    model, chain = built("llama", CHAINS["lora"])
    args = options(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    ChainTrainer(model=model, chain=chain, args=args, train_dataset=Examples()).train()
    model, chain = built("llama", ["full"])
    with pytest.raises(ConfigError, match="holds no state of chain full"):
        ChainTrainer(model=model, chain=chain, args=args, train_dataset=Examples()).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


def test_refuses_a_chain_of_another_model(tmp_path: Path) -> None:
    _, chain = built("llama", ["full"])
    with pytest.raises(ConfigError, match="chain full is not attached to this LlamaForCausalLM"):
        ChainTrainer(model=make("llama"), chain=chain, args=options(tmp_path), train_dataset=Examples())


def test_refuses_an_optimizer_that_the_chain_would_overrule(tmp_path: Path) -> None:
    model, chain = built("llama", ["full"])
    with pytest.raises(ConfigError, match="'adafactor', but the chain brings the optimizer; allowed: adamw_torch"):
        ChainTrainer(model=model, chain=chain, args=options(tmp_path, optim="adafactor"), train_dataset=Examples())


def test_refuses_two_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, chain = built("llama", ["full"])
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(ConfigError, match="2 devices; allowed: one"):
        ChainTrainer(model=model, chain=chain, args=options(tmp_path), train_dataset=Examples())
