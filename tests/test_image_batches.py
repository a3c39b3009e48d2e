"""Batches of images: every pixel in its place, normalised, mapped not read; models that do not fit are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lowrank.data.images import ImageSplit, image_batch
from lowrank.data.loader import open_splits
from lowrank.errors import ConfigError, IntegrityError
from lowrank.images import ImageFormat, check_fit
from lowrank.spec import DataSpec
from tests.image_files import ImageFiles, medmnist

FIT = {"model_type": "vit", "image_size": 28, "num_channels": 1}
IMAGE = ImageFormat(channels=1, height=28, width=28)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"image": None}, "model card 'm' reads images, but data card 'd' holds text"),
        ({"image": None, "config": {"vocab_size": 9}, "size": 28}, "image_size is 28, but data card 'd' holds text"),
        ({"config": {"vocab_size": 9}}, "data card 'd' holds images, which model card 'm', which reads text, cannot"),
        ({"task": "causal_lm"}, "data card 'd' holds images, which task 'causal_lm' cannot use"),
        (
            {"config": {**FIT, "num_channels": 3}},
            "data card 'd' gives .* (1, 28, 28), model card 'm' takes (3, 28",
        ),
        ({"size": 32}, "data card 'd' gives .* (1, 32, 32), model card 'm' takes (1, 28, 28); allowed: image_size: 28"),
    ],
)
def test_images_and_models_that_do_not_fit_are_refused(change: dict[str, Any], fault: str) -> None:
    fits: dict[str, Any] = {
        "image": IMAGE, "data": "d", "size": None, "model": "m", "config": FIT, "task": "classification",
    }  # fmt: skip
    check_fit(**fits)
    check_fit(**{**fits, "config": {**FIT, "image_size": 56}, "size": 56})
    with pytest.raises(ConfigError, match="^" + fault.replace("(", r"\(").replace(")", r"\)")):
        check_fit(**{**fits, **change})


def split_of(folder: Path, images: NDArray[np.uint8]) -> ImageSplit:
    save_file({"images": images, "labels": np.arange(len(images))}, folder / "train.safetensors")
    channels, height, width = images.shape[1:]
    return ImageSplit(folder / "train.safetensors", ImageFormat(channels=channels, height=height, width=width))


@given(st.integers(0, 2**31), st.sampled_from([1, 3]), st.data())
def test_a_batch_is_its_images_normalised(
    tmp_path_factory: pytest.TempPathFactory, seed: int, channels: Any, data: st.DataObject
) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (6, channels, 3, 2), dtype=np.uint8)
    split = split_of(tmp_path_factory.mktemp("split"), images)
    chosen = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    mean = data.draw(st.lists(st.floats(0, 1), min_size=channels, max_size=channels))
    std = data.draw(st.lists(st.floats(0.1, 1), min_size=channels, max_size=channels))
    image = ImageFormat(channels=channels, height=3, width=2, mean=tuple(mean), std=tuple(std))
    found = image_batch(split, torch.tensor(chosen), image, None)
    assert list(found) == ["pixel_values", "labels"]
    expected = (images[chosen] / 255 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    assert found["pixel_values"].dtype == torch.float32
    assert np.allclose(found["pixel_values"].numpy(), expected, atol=1e-5)
    assert found["labels"].tolist() == chosen
    assert torch.equal(split.images, torch.from_numpy(images)), "batches are copies"


def test_images_are_resized_where_the_data_settings_say_so(tmp_path: Path) -> None:
    images = (np.arange(2 * 4 * 4) * 7).astype(np.uint8).reshape(2, 1, 4, 4)
    split, image = split_of(tmp_path, images), ImageFormat(channels=1, height=4, width=4)

    def resized(size: int | None) -> torch.Tensor:
        return image_batch(split, torch.tensor([1]), image, size)["pixel_values"]

    assert resized(2).shape == (1, 1, 2, 2)
    assert resized(2).mean().item() == pytest.approx((images[1].mean() / 255 - 0.5) / 0.5, abs=1e-6)
    assert resized(8).shape == (1, 1, 8, 8)
    assert torch.equal(resized(4), resized(None))


def test_opening_a_split_does_not_read_it(tmp_path: Path) -> None:
    images = np.zeros((64, 1, 512, 512), np.uint8)
    file = tmp_path / "train.safetensors"
    save_file({"images": images, "labels": np.zeros(64, np.int64)}, file)
    process = psutil.Process()
    before = process.memory_info().rss
    split = ImageSplit(file, ImageFormat(channels=1, height=512, width=512))
    assert process.memory_info().rss - before < images.nbytes / 4
    assert len(split) == 64


def test_a_split_of_other_images_is_named(tmp_path: Path) -> None:
    split_of(tmp_path, np.zeros((3, 1, 4, 4), np.uint8))
    other = ImageFormat(channels=3, height=4, width=4)
    with pytest.raises(IntegrityError, match=r"train.safetensors: images of shape \(3, 1, 4, 4\); allowed: \(3, 3, 4"):
        ImageSplit(tmp_path / "train.safetensors", other)
    (tmp_path / "train.safetensors").write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"train.safetensors: not a prepared split \("):
        ImageSplit(tmp_path / "train.safetensors", other)


def test_splits_are_opened_as_the_loop_wants_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = ImageFiles(tmp_path, monkeypatch)
    folder = bench.prepare(bench.npz(medmnist()))
    batches = open_splits(folder, DataSpec(card="pictures", image_size=6), "classification")["train"]
    assert batches.rows == 20
    assert batches.by_length().tolist() == list(range(20))
    sizes = [tuple(batch["pixel_values"].shape) for batch in batches.micro_batches(batches.order(1, 2), 8)]
    assert sizes == [(8, 3, 6, 6), (8, 3, 6, 6), (4, 3, 6, 6)]
