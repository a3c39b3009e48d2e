"""Exported image models: transformers prepares an image as training did, and gives the run's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from lowrank.data.images import image_batch
from lowrank.export import export_run
from lowrank.export.image_processor import write_image_processor
from lowrank.files import write_json
from lowrank.images import ImageFormat
from lowrank.signals import StopFlag
from lowrank.train.pack import train_pack
from tests.test_image_batches import split_of
from tests.test_image_runs import CHAINS, spec_of
from tests.training_lab import member, pack_of


def processed(folder: Path, image: np.ndarray[Any, Any]) -> torch.Tensor:
    write_json(folder / "config.json", {"model_type": "vit"})
    found = AutoImageProcessor.from_pretrained(folder)(
        images=[image], return_tensors="pt", input_data_format="channels_last"
    )
    pixels: torch.Tensor = found["pixel_values"]
    return pixels


@pytest.mark.parametrize(("channels", "mean"), [(1, (0.3,)), (3, (0.3,)), (3, (0.1, 0.2, 0.3))])
def test_the_processor_does_what_a_batch_does(tmp_path: Path, channels: Any, mean: tuple[float, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, channels, 6, 6), dtype=np.uint8)
    image = ImageFormat(channels=channels, height=6, width=6, mean=mean, std=(0.4,))
    ours = image_batch(split_of(tmp_path, images), torch.tensor([1]), image, None)["pixel_values"]
    write_image_processor(tmp_path, image, None)
    assert torch.allclose(processed(tmp_path, images[1].transpose(1, 2, 0)), ours, atol=1e-5)


def test_the_processor_resizes_as_a_batch_does(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    image = ImageFormat(channels=3, height=8, width=8)
    ours = image_batch(split_of(tmp_path, images), torch.tensor([0]), image, 4)["pixel_values"]
    write_image_processor(tmp_path, image, 4)
    theirs = processed(tmp_path, images[0].transpose(1, 2, 0))
    # Pillow resizes in whole numbers, so a pixel may differ by one step of 255.
    assert (theirs - ours).abs().max().item() <= 1.01 / 255 / 0.5


def test_text_has_no_processor(tmp_path: Path) -> None:
    write_image_processor(tmp_path, None, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("chain", "outputs"), [("lora", None), ("full", 1000)])
def test_a_trained_vit_is_exported_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str, outputs: int | None
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = spec_of(CHAINS[chain], model={"head_classes": outputs})
    train_pack(pack_of(spec), StopFlag())
    folder = export_run(member(spec).run, "merged")
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.id2label[3] == "frame"
    assert model.config.num_labels == (outputs or 4)
    assert (folder / "preprocessor_config.json").is_file()
