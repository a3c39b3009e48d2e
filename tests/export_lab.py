"""Bases of each family and finished runs on them, for exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM

from lowrank import cards
from lowrank.data.fetch import fetch
from lowrank.export import export_run
from lowrank.export.probe import probe_logits
from lowrank.files import seal, sha256_file, write_json
from lowrank.methods.chain import Chain
from lowrank.models.load import load_model
from lowrank.run_folder import SPEC, WEIGHTS, read_spec
from lowrank.spec import RunSpec, identity
from lowrank.strict import parse
from tests.card_files import BERT, ROWS, PreparedFiles, word_tokenizer

SIZES = {"vocab_size": 40, "pad_token_id": 0, "max_position_embeddings": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**BERT, "num_hidden_layers": 2},
    "distilbert": {**SIZES, "model_type": "distilbert", "dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 2},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 40,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "n_positions": 32,
        "n_embd": 16,
        "n_head": 2,
        "n_layer": 2,
    },
    "llama": {
        **SIZES,
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": None,
        "eos_token_id": None,
    },
}
LORA: dict[str, Any] = {"part": "lora", "rank": 2, "alpha": 3}


class Lab(PreparedFiles):
    """Bases of each family, and runs as the trainer leaves them, with weights that are clearly not the base's."""

    def hub(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pretrained card with a hub source, its files fetched elsewhere."""
        folder = self.root / "files" / f"owner--{family}"
        folder.mkdir(parents=True)
        torch.manual_seed(1)
        AutoModelForMaskedLM.from_config(AutoConfig.for_model(**CONFIGS[family])).save_pretrained(folder)
        (folder / "tokenizer.json").write_text(word_tokenizer())
        (folder / "config.json").write_text(json.dumps(CONFIGS[family]))
        files = {name: sha256_file(folder / name) for name in ("config.json", "model.safetensors", "tokenizer.json")}
        source = {"kind": "hub", "repository": f"owner/{family}", "revision": "a" * 40, "files": files}
        self.write("models", family, init="pretrained", config=CONFIGS[family], source=source)
        monkeypatch.setenv("LOWRANK_FILES", str(self.root / "files"))

    def base(self, family: str) -> None:
        config = CONFIGS[family]
        files = {"config.json": json.dumps(config), "tokenizer.json": word_tokenizer()}
        if family not in cards.card_names("models"):
            self.model(family, files, config=config)
        self.data("rows", ROWS)
        for card in (cards.model_card(family), cards.data_card("rows")):
            fetch(card, self.root / "downloads")

    def spec(self, card: str, chain: list[Any], task: str, **model: Any) -> dict[str, Any]:
        return {
            "task": task,
            "model": {"card": card, **model},
            "data": {"card": "rows", "max_length": 8},
            "chain": chain,
            "train": {"lr": 1e-2, "steps": 2, "batch_size": 8},
        }

    def run(self, family: str, chain: list[Any], *, keep: bool = True, **options: Any) -> str:
        self.base(family)
        task = "classification" if family in ("bert", "distilbert") else "causal_lm"
        spec = parse(RunSpec, self.spec(family, chain, options.pop("task", task), **options), "test")
        folder = self.root / "runs" / "a-run"
        folder.mkdir(parents=True)
        pins = cards.run_pins(cards.model_card(family), cards.data_card("rows"))
        write_json(folder / SPEC, {"run": "a-run", **identity(spec, pins)})
        if keep:
            model = load_model(spec.model, spec.task, 2, spec.seed, self.root / "downloads")
            attached = Chain.build(spec.chain).attach(model, spec.seed)
            generator = torch.Generator().manual_seed(5)
            tensors = attached.changed()
            for tensor in tensors.values():
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / WEIGHTS)
        seal(folder, {"status": "ok", "cause": None, "code": "x", "metrics": {"last_val_loss": 0.5}})
        return "a-run"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def export(self, to: Any) -> Path:
        return export_run("a-run", to, self.out, self.root / "runs", self.root / "downloads")

    def moved(self) -> float:
        """How far the run's logits are from its base's, which a drift is measured against."""
        spec = read_spec("a-run", self.root / "runs")
        base = load_model(spec.model, spec.task, 2, spec.seed, self.root / "downloads")
        tensors = load_file(self.root / "probe.safetensors")
        logits = tensors.pop("logits")
        moved = (probe_logits(base, tensors) - logits).abs().max().item()
        assert moved > 0
        return moved
