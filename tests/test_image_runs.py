"""Image classification through the real loop: every method of the ViT comparison trains, scores and can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowrank.cards import data_card, model_card
from lowrank.checks import check
from lowrank.errors import ConfigError
from lowrank.files import read_json
from lowrank.measure import counts
from lowrank.methods.chain import Chain
from lowrank.models.load import load_model, skeleton
from lowrank.planning import Planner
from lowrank.signals import StopFlag
from lowrank.spec import EvalSpec, ModelSpec, RunSpec
from lowrank.train.pack import train_pack
from tests.training_lab import history, manifest, member, pack_of, prepared, weights

QV = ["q_proj", "v_proj"]
LTE = {"part": "lte", "num_lora_heads": 4, "rank": 2, "alpha": 4, "merge_every": 2, "targets": QV}
GALORE = {"part": "galore", "rank": 2, "update_gap": 2, "scale": 1, "targets": QV}
OFF = {"part": "lora", "rank": 8, "alpha": 4, "integer_scaling": True, "targets": QV}
CHAINS: dict[str, Any] = {
    "full": "full",
    "linear_probe": "linear_probe",
    "lora": [{"part": "lora", "rank": 4, "targets": QV}],
    "lora_as_published": [OFF, {**GALORE, "rank": 512, "excess_rank": "clip"}],
    "galore": ["full", {**GALORE, "targets": "all-linear"}],
    "lte": [LTE],
    "lte_galore": [LTE, GALORE],
}


def spec_of(chain: Any, *, model: dict[str, Any] | None = None, **train: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "task": "classification",
            "model": {"card": "smoke_vit", **(model or {})},
            "data": {"card": "smoke_shapes", "train_rows": 32, "validation_rows": 12, "test_rows": 12},
            "chain": chain,
            "train": {"lr": 1e-2, "batch_size": 16, "epochs": 2, **train},
        }
    )


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trained(spec: RunSpec) -> str:
    train_pack(pack_of(spec), StopFlag())
    return member(spec).run


@pytest.mark.parametrize("name", CHAINS)
def test_every_method_of_the_comparison_trains_a_vit(name: str) -> None:
    run = trained(spec_of(CHAINS[name]))
    rows = history(run)
    assert [row["step"] for row in rows if row["val_accuracy"] is not None] == [2, 4]
    found = manifest(run)["metrics"]
    assert found["tokens"] == 64, "images are counted"
    assert manifest(run)["status"] == "ok"


def test_a_batch_in_pieces_is_the_batch() -> None:
    whole, pieces = (trained(spec_of(CHAINS["lora"], micro_batch_size=size)) for size in (None, 4))
    for one, other in zip(history(whole), history(pieces), strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-6)


def test_integer_division_makes_lora_a_linear_probe() -> None:
    probe = trained(spec_of("linear_probe"))
    off = trained(spec_of([OFF]))
    assert [row["train_loss"] for row in history(off)] == [row["train_loss"] for row in history(probe)]
    moved = {name for name, tensor in weights(off).items() if "lora_B" in name and tensor.any()}
    assert not moved, "no gradient reaches the adapters"
    alive = trained(spec_of([{**OFF, "rank": 4}]))
    assert all(tensor.any() for name, tensor in weights(alive).items() if "lora_B" in name)


def test_a_head_may_have_more_outputs_than_the_data_has_labels() -> None:
    run = trained(spec_of("full", model={"head_classes": 1000}))
    assert weights(run)["classifier.weight"].shape == (1000, 32)
    assert history(run)[0]["train_loss"] > 5, "ln 1000 = 6.9 at the start, ln 4 = 1.4 with a head of its own"
    with pytest.raises(ConfigError, match=r"^model card 'smoke_vit': head_classes is 3; allowed: 4 or more"):
        load_model(ModelSpec(card="smoke_vit", head_classes=3), "classification", 4, 0, Path("resources/downloads"))


def test_images_are_refused_where_the_model_reads_text() -> None:
    spec = spec_of("full", model={"card": "smoke_bert"})
    with pytest.raises(ConfigError, match=r"^data card 'smoke_shapes' holds images, which model card 'smoke_bert'"):
        check(spec, model_card("smoke_bert"), data_card("smoke_shapes"))


def test_images_are_prepared_without_any_model() -> None:
    planner = Planner("smoke")
    planner.add_run(spec_of("full"), "study", keep_weights=True)
    planner.add_packs("study", ["lr"], {"test": EvalSpec()}, size=8, mem_mb=100)
    ((name, entry),) = planner.plan()["data"].items()
    assert entry["cards"] == ["smoke_shapes"]
    assert read_json(prepared(spec_of("full")) / "manifest.json")["id"] == name


@pytest.mark.parametrize(
    ("card", "rank", "trainable"),
    [("vit_base", 4, 154_377), ("vit_base", 8, 301_833), ("vit_base", 64, 2_366_217), ("vit_large", 8, 795_657)],
)
def test_lora_on_the_papers_models_has_the_documents_counts(card: str, rank: int, trainable: int) -> None:
    """The document adds 2,439 parameters of a layer that it never uses, and divides by 2**20."""
    model = skeleton(ModelSpec(card=card), "classification", 9)
    Chain.build(spec_of([{"part": "lora", "rank": rank, "targets": QV}]).chain).attach(model, 0)
    assert counts(model)["trainable_parameters"] == trainable
