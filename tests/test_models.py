"""Loading base models: the trunk from the files, the rest from the seed, and nothing else touched."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowrank.cards import model_card
from lowrank.data.fetch import fetch
from lowrank.errors import ConfigError, IntegrityError
from lowrank.models.load import load_model, skeleton
from lowrank.spec import ModelSpec
from tests.card_files import BERT, CardFiles, sha256

WIDE = {"vocab_size": 40, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "distilbert": {**WIDE, "dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 3, "max_position_embeddings": 32},
    "gpt2": {**WIDE, "n_embd": 16, "n_head": 2, "n_layer": 3, "n_positions": 32},
    "llama": {
        **WIDE, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3,
        "max_position_embeddings": 32,
    },
    "roberta": {**BERT, "max_position_embeddings": 40},  # not in the table: found through the auto classes
    "vit": {
        "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3,
        "image_size": 8, "patch_size": 4, "num_channels": 1,
    },
}  # fmt: skip
TOKENS = torch.tensor([[5, 6, 7, 8, 9]])


class ModelFiles(CardFiles):
    def random(self, family: str) -> None:
        config = {**FAMILIES[family], "model_type": family}
        fetch(self.model("m", config=config), self.root / "downloads")

    def pretrained(self, tensors: dict[str, Tensor], config: dict[str, Any] = BERT) -> Path:
        """A card whose files hold these tensors; returns the file."""
        card = self.model("m", config=config, init="pretrained")
        assert card.source.kind == "local"
        file = card.source.folder / "model.safetensors"
        save_file(tensors, file)
        source = {**card.source.model_dump(), "files": {"config.json": None, "model.safetensors": None}}
        fetch(self.model("m", config=config, init="pretrained", source=source), self.root / "downloads")
        return file

    def load(self, task: str = "classification", labels: int = 3, seed: int = 0, **options: Any) -> nn.Module:
        return load_model(ModelSpec(card="m", **options), task, labels, seed, self.root / "downloads")

    def trunk(self) -> dict[str, Tensor]:
        """The tensors of some random BERT, without the prefix, as encoders are published."""
        self.random("bert")
        return {k.removeprefix("bert."): v for k, v in self.load(seed=9).state_dict().items() if k.startswith("bert.")}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFiles:
    def refuse(*_: Any) -> None:
        raise AssertionError("loading a model used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return ModelFiles(tmp_path, monkeypatch)


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_models_are_drawn_from_the_seed_alone(files: ModelFiles, family: str) -> None:
    files.random(family)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = files.load(seed=1)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    torch.manual_seed(7)
    assert same(first, files.load(seed=1))
    assert not same(first, files.load(seed=2))
    assert not first.training
    assert first.config._attn_implementation == "sdpa"
    inputs = {"pixel_values": torch.zeros(1, 1, 8, 8)} if family == "vit" else {"input_ids": TOKENS}
    assert first(**inputs).logits.shape == (1, 3)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "roberta"])
def test_language_models_see_only_what_came_before(files: ModelFiles, family: str) -> None:
    files.random(family)
    model = files.load("causal_lm")
    changed = TOKENS.clone()
    changed[0, 3] = 30
    before, after = model(input_ids=TOKENS).logits, model(input_ids=changed).logits
    assert before.shape == (1, 5, 40)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3], after[:, 3])


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_dropout_and_dtype(files: ModelFiles, family: str) -> None:
    files.random(family)
    model = files.load(layers=2, dropout=0.25, dtype="bfloat16")
    numbered = {name for name, module in model.named_modules() if name.rsplit(".", 1)[-1].isdigit()}
    assert {name.rsplit(".", 1)[-1] for name in numbered} == {"0", "1"}
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert rates <= {0.25}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match=r"^model card 'm': layers is 4; allowed: up to 3$"):
        files.load(layers=4)


def test_the_skeleton_is_the_model_without_numbers(files: ModelFiles) -> None:
    files.random("bert")
    spec = ModelSpec(card="m", layers=2)
    shapes = skeleton(spec, "classification", 3)
    assert all(parameter.is_meta for parameter in shapes.parameters())
    loaded = load_model(spec, "classification", 3, 0, files.root / "downloads")
    assert {k: v.shape for k, v in shapes.named_parameters()} == {k: v.shape for k, v in loaded.named_parameters()}


def test_distilbert_has_its_published_size() -> None:
    parameters = skeleton(ModelSpec(card="distilbert"), "classification", 2).parameters()
    assert sum(parameter.numel() for parameter in parameters) == 66_955_010


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_pretrained_trunk_is_the_files_and_the_head_the_seeds(files: ModelFiles, prefix: str) -> None:
    trunk = files.trunk()
    # Heads of other tasks, and one of this task's own name and shape, belong to another run.
    heads = {"classifier.weight": torch.ones(3, 16), "cls.predictions.bias": torch.ones(40)}
    file = files.pretrained({**{prefix + name: tensor for name, tensor in trunk.items()}, **heads})
    model, digest = files.load(seed=1), sha256(file.read_bytes())
    found = model.state_dict()
    assert all(torch.equal(found[f"bert.{name}"], tensor) for name, tensor in trunk.items())
    assert torch.equal(model.classifier.weight, files.load(seed=1, layers=1).classifier.weight)
    assert not torch.equal(model.classifier.weight, files.load(seed=2).classifier.weight)
    assert 0 < model.classifier.weight.std() < 0.1
    assert not model.training
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert sha256(file.read_bytes()) == digest, "training a mapped tensor does not write to its file"


def test_cut_layers_are_left_out_and_nothing_else(files: ModelFiles) -> None:
    trunk = files.trunk()
    file = files.pretrained(trunk)
    model = files.load(layers=2)
    kept = {name for name in trunk if not name.startswith("encoder.layer.2.")}
    assert {name.removeprefix("bert.") for name in model.state_dict() if name.startswith("bert.")} == kept
    files.pretrained({**trunk, "encoder.layer.0.extra": torch.ones(1)})
    with pytest.raises(IntegrityError) as caught:
        files.load(layers=2)
    assert str(caught.value) == f"model card 'm': {file.parent} holds unknown trunk tensors: encoder.layer.0.extra"


def test_trunk_tensors_that_miss_or_do_not_fit_are_named(files: ModelFiles) -> None:
    trunk = files.trunk()
    file = files.pretrained({name: tensor for name, tensor in trunk.items() if "pooler" not in name})
    with pytest.raises(IntegrityError) as caught:
        files.load()
    folder = file.parent
    missed = "bert.pooler.dense.bias, bert.pooler.dense.weight"
    assert str(caught.value) == f"model card 'm': {folder} misses trunk tensors: {missed}"
    files.pretrained({**trunk, "pooler.dense.bias": torch.ones(5)})
    with pytest.raises(IntegrityError) as caught:
        files.load()
    assert str(caught.value) == (
        f"model card 'm': {folder} has shapes other than the model's trunk tensors: bert.pooler.dense.bias"
    )
    files.pretrained({})
    with pytest.raises(IntegrityError, match=r" and \d+ more$"):
        files.load()


def test_files_that_are_missing_or_broken(files: ModelFiles) -> None:
    file = files.pretrained(files.trunk())
    file.write_bytes(b"broken")
    source = {"kind": "local", "path": str(file.parent), "files": {"config.json": None}}
    fetch(files.model("m", init="pretrained", source=source), files.root / "downloads")
    with pytest.raises(IntegrityError, match=rf"^{file}: not readable \("):
        files.load()
    file.unlink()
    with pytest.raises(IntegrityError) as caught:
        files.load()
    assert str(caught.value) == f"{file.parent}: no .safetensors file, which a pretrained model needs"


def test_config_that_is_not_what_the_card_says(files: ModelFiles) -> None:
    other = json.dumps({**BERT, "hidden_size": 8})
    fetch(files.model("m", {"config.json": other}), files.root / "downloads")
    with pytest.raises(IntegrityError) as caught:
        files.load()
    assert str(caught.value) == "model card 'm': config.json says hidden_size is 8, the card 16"


def test_architectures_that_do_not_exist_or_do_not_fit(files: ModelFiles) -> None:
    files.random("distilbert")
    with pytest.raises(ConfigError) as caught:
        files.load("causal_lm")
    assert str(caught.value) == "model card 'm': architecture 'distilbert' has no class for task 'causal_lm'"
    fetch(files.model("m", config={**BERT, "model_type": "brt"}), files.root / "downloads")
    with pytest.raises(ConfigError) as caught:
        files.load()
    assert str(caught.value) == (
        "model card 'm': unknown model_type 'brt'; did you mean 'bert'? "
        "(allowed: bert, distilbert, gpt2, llama, vit) and the architectures of transformers"
    )


def test_only_the_needed_architecture_is_imported(files: ModelFiles) -> None:
    files.random("bert")
    code = (
        "import sys; from pathlib import Path; from lowrank import cards; cards.CARDS = Path(sys.argv[1])\n"
        "from lowrank.models.load import load_model; from lowrank.spec import ModelSpec\n"
        "load_model(ModelSpec(card='m'), 'classification', 2, 0, Path(sys.argv[2])); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, str(files.root / "cards"), str(files.root / "downloads")]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "transformers.models.bert.modeling_bert" in loaded
    unwanted = {"peft", "bitsandbytes", "datasets", "pandas", "transformers.trainer"}
    assert not unwanted & loaded
    assert not {name for name in loaded if name.endswith(("modeling_llama", "modeling_gpt2", "modeling_distilbert"))}


def test_committed_smoke_model_loads(tmp_path: Path) -> None:
    fetch(model_card("smoke_bert"), tmp_path)
    model = load_model(ModelSpec(card="smoke_bert"), "classification", 4, 0, tmp_path)
    assert model(input_ids=TOKENS).logits.shape == (1, 4)
