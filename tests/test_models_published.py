"""Models as hubs publish them: without a configuration among the files, and under other names."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn

from lowrank.data.fetch import fetch
from tests.card_files import BERT
from tests.test_models import FAMILIES, ModelFiles


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFiles:
    return ModelFiles(tmp_path, monkeypatch)


def trunk(model: nn.Module) -> dict[str, list[float]]:
    return {k: v.flatten().tolist() for k, v in model.state_dict().items() if not k.startswith("classifier")}


def test_a_card_is_the_configuration_where_its_source_has_no_file_of_it(files: ModelFiles) -> None:
    files.random("bert")
    expected = files.load(seed=5)
    names = {"model.safetensors": ""}
    source = files.local("other", names)
    save_file(expected.state_dict(), Path(source["path"]) / "model.safetensors")
    fetch(files.model("m", init="pretrained", source=source), files.root / "downloads")
    loaded = files.load(seed=5)
    assert trunk(loaded) == trunk(expected)
    assert {key: getattr(loaded.config, key) for key in BERT} == BERT


def test_vision_transformers_are_read_under_the_names_that_the_hub_has(files: ModelFiles) -> None:
    files.random("vit")
    expected = files.load(seed=1)
    published = {"layers": "encoder.layer", "q_proj": "attention.query", "k_proj": "attention.key"}
    published |= {"v_proj": "attention.value", "o_proj": "output.dense", "mlp.fc1": "intermediate.dense"}
    published |= {"mlp.fc2": "output.dense"}
    tensors = {}
    for name, tensor in expected.state_dict().items():
        for ours, theirs in published.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        tensors[name] = tensor
    assert "vit.encoder.layer.0.attention.attention.query.weight" in tensors
    files.pretrained(tensors, {**FAMILIES["vit"], "model_type": "vit"})
    assert trunk(files.load(seed=2)) == trunk(expected)
