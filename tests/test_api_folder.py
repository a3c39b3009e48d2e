"""Saving an attached method, loading it again, and the VeLoRA document's own call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lowrank
from lowrank.api import METHOD, STATE, WEIGHTS
from lowrank.compositions import CHAINS, small
from lowrank.errors import ConfigError, IntegrityError
from lowrank.files import MANIFEST
from lowrank.methods.adapted import adapted
from lowrank.spec import TrainSpec
from tests.chain_runs import logits, snapshot, train
from tests.tiny_models import batch, make
from tests.tolerances import BIT_EXACT

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LORA: dict[str, Any] = {"part": "lora", "rank": 4, "targets": ["q_lin"]}


class TestFolder:
    @pytest.mark.parametrize("name", CHAINS)
    def test_what_is_saved_goes_on_as_if_it_had_not_stopped(self, name: str, tmp_path: Path) -> None:
        rows = [batch("bert", 4, seed) for seed in range(4)]
        entries = [small(part) for part in name.split("+")]

        def going_on(stop: bool) -> torch.Tensor:
            model = make("bert").float()
            chain = lowrank.attach(model, entries, seed=5)
            spec = TrainSpec(lr=1e-2, steps=4)
            optimizer = chain.optimizer(spec)
            train(model, chain, optimizer, rows[:2])
            if stop:
                moments = optimizer.state_dict()
                lowrank.save(model, tmp_path / "saved")
                model = make("bert").float()
                chain = lowrank.load(model, tmp_path / "saved")
                optimizer = chain.optimizer(spec)
                optimizer.load_state_dict(moments)
            train(model, chain, optimizer, rows[2:], first=2)
            return logits(chain, rows[0])

        BIT_EXACT.check(going_on(stop=True), going_on(stop=False))

    def test_holds_what_differs_from_the_base_and_nothing_else(self, tmp_path: Path) -> None:
        model = make("distilbert").float()
        chain = lowrank.attach(model, LORA)
        folder = lowrank.save(model, tmp_path / "a" / "b")
        assert {path.name for path in folder.iterdir()} == {WEIGHTS, STATE, METHOD, MANIFEST}
        tensors = load_file(folder / WEIGHTS)
        assert tensors.keys() == chain.trainable().keys()
        assert not list(tmp_path.glob("a/.b*")), "temporary folders are gone"
        lowrank.save(model, folder)  # replaces it whole

    @pytest.mark.parametrize("name", [WEIGHTS, STATE, METHOD])
    def test_damage_is_noticed_before_the_model_is_touched(self, name: str, tmp_path: Path) -> None:
        model = make("bert")
        lowrank.attach(model, "lora")
        folder = lowrank.save(model, tmp_path / "saved")
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        fresh = make("bert")
        with pytest.raises(IntegrityError, match=f"{name}: sha256 is"):
            lowrank.load(fresh, folder)
        lowrank.attach(fresh, "full")

    def test_what_belongs_to_another_model(self, tmp_path: Path) -> None:
        model = make("bert")
        lowrank.attach(model, "lora")
        folder = lowrank.save(model, tmp_path / "saved")
        with pytest.raises(IntegrityError, match="for a BertForSequenceClassification, the model is a DistilBert"):
            lowrank.load(make("distilbert"), folder)

    def test_a_base_of_another_size_is_left_as_it_was(self, tmp_path: Path) -> None:
        model = make("bert")
        lowrank.attach(model, "full")
        folder = lowrank.save(model, tmp_path / "saved")
        other = make("bert", seed=1)
        other.classifier = nn.Linear(16, 5).double()  # type: ignore[assignment]
        before, modules = snapshot(other), list(other.named_modules())
        with pytest.raises(IntegrityError, match=r"'classifier.bias' is \(3,\), the model has \(5,\)"):
            lowrank.load(other, folder)
        assert list(other.named_modules()) == modules
        for name, tensor in other.state_dict().items():
            BIT_EXACT.check(tensor, before[name])
        lowrank.attach(other, "lora")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(IntegrityError, match="no such file"):
            lowrank.load(make("bert"), tmp_path / "nowhere")

    def test_a_merged_model_is_a_plain_one(self, tmp_path: Path) -> None:
        model = make("bert")
        lowrank.attach(model, "lora")
        lowrank.merge(model)
        with pytest.raises(ConfigError, match="merged, so nothing is left to save apart"):
            lowrank.save(model, tmp_path / "saved")


class TestSetLayers:
    """The VeLoRA document's own call."""

    CONFIG: dict[str, Any] = {"rank": 1, "num_groups": 4, "init_type": "batch_average_once", "layers": "vd"}

    @pytest.mark.parametrize(
        ("method", "name"),
        [
            ("velora+full", "full.velora"),
            ("full+velora", "full.velora"),
            ("velora+lora", "lora.velora"),
            ("velora+mhlora", "mhlora.velora"),
        ],
    )
    def test_as_written(self, method: str, name: str) -> None:
        model = make("llama")
        chain = lowrank.set_layers(model, method, self.CONFIG)
        assert chain.name == name
        options = chain["velora"].options
        assert (options.layers, options.num_groups, options.init) == (("v", "down"), (4,), "batch_average_once")
        assert {name.rsplit(".", 1)[-1] for name, layer in adapted(model) if layer.keep} == {"v_proj", "down_proj"}

    @pytest.mark.parametrize("rank", [0, 2, "2", None])
    def test_another_rank_is_refused(self, rank: Any) -> None:
        with pytest.raises(ConfigError, match=rf"set_layers: rank {rank!r}; allowed: 1"):
            lowrank.set_layers(make("llama"), "velora+full", {**self.CONFIG, "rank": rank})

    def test_wrong_use(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown key 'init'; did you mean 'init_type'\?"):
            lowrank.set_layers(make("llama"), "velora+full", {"init": "random"})
        for method in ("velora", "full", "velora+full+lora", "full+lora"):
            with pytest.raises(ConfigError, match=r"allowed: velora\+full"):
                lowrank.set_layers(make("llama"), method, self.CONFIG)
