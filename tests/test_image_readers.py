"""Images: read without pickle, divided by their pixels, every pixel in its place, faults explained."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lowrank.cards import data_card, prepared_id
from lowrank.data.image_readers import read_images
from lowrank.data.readers import SPLITS
from lowrank.errors import ConfigError, IntegrityError
from lowrank.files import REPOSITORY, check_seal
from lowrank.spec import DataSpec
from tests.image_files import LABELS, ImageFiles, medmnist, npz_with

NPZ = {"train": "train", "validation": "val", "test": "test"}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageFiles:
    return ImageFiles(tmp_path, monkeypatch)


def test_a_medmnist_file_keeps_its_splits_and_every_pixel(bench: ImageFiles) -> None:
    arrays = medmnist()
    folder = bench.prepare(bench.npz(arrays))
    manifest = check_seal(folder)
    assert manifest["task"] == "image"
    assert manifest["labels"] == LABELS
    assert manifest["repeats_across_splits"] == 0
    for ours, theirs in NPZ.items():
        found = load_file(folder / f"{ours}.safetensors")
        assert np.array_equal(found["images"], arrays[f"{theirs}_images"].transpose(0, 3, 1, 2))
        assert np.array_equal(found["labels"], arrays[f"{theirs}_labels"][:, 0])
        counts = dict(zip(LABELS, np.bincount(found["labels"], minlength=3).tolist(), strict=True))
        assert manifest["splits"][ours]["rows_per_label"] == {label: n for label, n in counts.items() if n}


def test_grey_images_fill_three_channels_where_the_card_says_so(bench: ImageFiles) -> None:
    arrays = medmnist(shape=(5, 4))
    three = load_file(bench.prepare(bench.npz(arrays)) / "train.safetensors")["images"]
    assert three.shape == (20, 3, 5, 4)
    assert all(np.array_equal(three[:, channel], arrays["train_images"]) for channel in range(3))


def rows_of(count: int, seed: int = 0) -> list[list[Any]]:
    draw = np.random.default_rng(seed)
    return [[*draw.integers(0, 256, 20).tolist(), LABELS[index % 3]] for index in range(count)]


GREY = {"image": {"channels": 1, "height": 5, "width": 4}}


def test_images_without_splits_are_divided_by_their_pixels_alone(bench: ImageFiles) -> None:
    rows = rows_of(60)
    rows += [rows[3], rows[7]]  # equal images stay on one side
    folder = bench.prepare(bench.csv(rows), **GREY)
    splits = {name: load_file(folder / f"{name}.safetensors") for name in SPLITS}
    assert all(len(arrays["labels"]) > 1 for arrays in splits.values())
    assert check_seal(folder)["repeats_across_splits"] == 0
    seen = [tuple(image.flatten().tolist()) for arrays in splits.values() for image in arrays["images"]]
    assert sorted(seen) == sorted(tuple(row[:-1]) for row in rows)
    label_of = {tuple(row[:-1]): LABELS.index(row[-1]) for row in rows}
    for arrays in splits.values():
        found = [label_of[tuple(image.flatten().tolist())] for image in arrays["images"]]
        assert found == arrays["labels"].tolist()
    before = {name: sorted(map(bytes, arrays["images"])) for name, arrays in splits.items()}
    turned = bench.prepare(bench.csv(rows[::-1]), **GREY)
    after = {name: sorted(map(bytes, load_file(turned / f"{name}.safetensors")["images"])) for name in SPLITS}
    assert after == before, "the order of the file decides only the order within a split"


def test_labels_left_out_and_rows_asked_for(bench: ImageFiles) -> None:
    file = bench.csv(rows_of(60))
    manifest = check_seal(
        bench.prepare(file, {"train_rows": 8, "test_rows": 4}, **GREY, labels=["a", "c"], left_out=["b"])
    )
    assert [manifest["splits"][name]["rows"] for name in SPLITS] == [8, 3, 4]
    assert set(manifest["splits"]["train"]["rows_per_label"]) == {"a", "c"}
    with pytest.raises(ConfigError, match=r"^data 'pictures': train_rows is 99; allowed: up to 43"):
        bench.prepare(file, {"train_rows": 99}, **GREY)


def test_prepared_images_belong_to_no_model_and_no_size(bench: ImageFiles) -> None:
    card = bench.card(bench.npz(medmnist()))
    models = [bench.model(name, config={"image_size": 4, "model_type": "vit"}) for name in ("one", "two")]
    names = {prepared_id(DataSpec(card=card.name, image_size=size), m, card) for size in (None, 8) for m in models}
    assert len(names) == 1


def object_array() -> bytes:
    """A .npy file that only pickle could read."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def changed(**arrays: Any) -> dict[str, Any]:
    return {**medmnist(), **arrays}


@pytest.mark.parametrize(
    ("arrays", "fault"),
    [
        ({k: v for k, v in medmnist().items() if k != "val_labels"}, "has no array 'val_labels'; found "),
        (changed(train_images=np.zeros((20, 5, 5, 3), np.uint8)), "uint8 of shape (5, 5, 3); allowed: uint8 of shape"),
        (changed(train_images=np.zeros((20, 5, 4, 3), np.int16)), "int16 of shape (5, 4, 3); allowed: uint8 of shape"),
        (changed(train_images=np.zeros((20, 5, 4, 3), np.float32)), "float32 of shape (20, 5, 4, 3) in C order"),
        (changed(train_images=np.asfortranarray(medmnist()["train_images"])), "in Fortran order; allowed: whole"),
        (changed(train_labels=np.full((20, 1), 3)), "[train_images][0]: label is 3 (allowed: a, b, c)"),
        (changed(train_labels=np.zeros((20, 14), np.uint8)), "14 labels for each image; allowed: one"),
        (changed(test_labels=np.zeros((9, 1), np.uint8)), "10 test images, but 9 labels"),
        (changed(test_labels=np.zeros((11, 1), np.uint8)), "10 test images, but 11 labels"),
    ],
)
def test_faults_in_medmnist_files_are_named(bench: ImageFiles, arrays: dict[str, Any], fault: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        bench.prepare(bench.npz(arrays))
    assert fault in str(caught.value)
    assert "rows.npz" in str(caught.value)
    assert not (bench.root / "prepared").exists()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"no archive", "not readable (File is not a zip file)"),
        (npz_with(medmnist(), {"train_labels": b"nothing"}), "[train_labels.npy]: not an array ("),
        (npz_with(medmnist(), {"train_labels": object_array()}), "[train_labels.npy]: object of shape (1,) in C order"),
        (npz_with(medmnist(), {"val_images": object_array()[:60]}), "[val_images.npy]: not an array ("),
    ],
)
def test_files_that_are_no_arrays_are_refused_and_nothing_is_unpickled(
    bench: ImageFiles, content: bytes, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    (bench.folder() / "rows.npz").write_bytes(content)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    with pytest.raises(IntegrityError) as caught:
        bench.prepare("rows.npz")
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([*range(19), "a"], "rows.csv.gz:2: 20 cells; allowed: 20 pixels and a label"),
        ([*range(19), 256, "a"], "rows.csv.gz:2: pixels are 0 to 256; allowed: 0 to 255"),
        ([*range(19), 0.5, "a"], "rows.csv.gz:2: a pixel is no whole number ("),
        ([*range(20), "d"], "rows.csv.gz:2: label is 'd' (allowed: a, b, c)"),
    ],
)
def test_faults_in_tables_of_pixels_name_the_row(bench: ImageFiles, row: list[Any], fault: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        bench.prepare(bench.csv([*rows_of(1), row]), **GREY)
    assert fault in str(caught.value)


def test_a_table_that_is_cut_off_is_named(bench: ImageFiles) -> None:
    file = bench.folder() / bench.csv(rows_of(50))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(IntegrityError, match=rf"^{file}: not readable \("):
        bench.prepare(file.name, **GREY)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"image": {"channels": 2, "height": 5, "width": 4}}, "channels"),
        (
            {"image": {"channels": 3, "height": 5, "width": 4, "mean": [0.1, 0.2]}},
            "mean has 2 numbers; allowed: 1 or",
        ),
        ({"image": {"channels": 1, "height": 5, "width": 4, "std": [0]}}, "std"),
        ({"image": None}, "do not go together"),
        ({"task": "classification"}, "do not go together"),
        ({"labels": ["a"]}, "two or more different names"),
    ],
)
def test_cards_of_images_are_checked(bench: ImageFiles, fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bench.card("rows.npz", **fields)
    assert fault in str(caught.value)


def test_the_reader_must_be_one_of_images(bench: ImageFiles) -> None:
    card = bench.card(bench.npz(medmnist()), reader="npz_image")
    with pytest.raises(ConfigError, match=r"unknown reader 'npz_image'; did you mean 'npz_images'\? \(allowed: csv_"):
        list(read_images(card, bench.folder()))


def test_pins_name_the_normalisation(bench: ImageFiles) -> None:
    def pin(**image: Any) -> str:
        return bench.card("rows.npz", image={"channels": 3, "height": 5, "width": 4, **image}).pin

    bench.npz(medmnist())
    assert pin() == pin(mean=[0.5])
    assert pin() != pin(mean=[0.4])


def test_committed_smoke_images_are_what_their_card_says() -> None:
    images = list(read_images(data_card("smoke_shapes"), REPOSITORY / "resources" / "smoke" / "shapes"))
    assert len(images) == 160
    assert np.bincount([label for _, label, _ in images]).tolist() == [40] * 4
