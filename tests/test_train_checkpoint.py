"""Checkpoints: bit for bit, whole or not there, the newest valid one wins, aloud."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank.errors import LowrankError
from lowrank.files import seal
from lowrank.train import checkpoint
from lowrank.train.checkpoint import load_newest, load_optimizer, save

FACTS = {"run": "r", "code": "c"}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)


def state(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "w": torch.full((4, 3), float(step)),
        "moments": {0: {"exp_avg": torch.ones(2, dtype=torch.bfloat16)}},
    }


@given(value=VALUES)
def test_any_tree_of_values_comes_back(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder, 1, {"value": value}, FACTS)
    loaded = load_newest(folder, FACTS)
    assert loaded is not None
    assert loaded["value"] == value
    assert repr(loaded["value"]) == repr(value)  # 1 and 1.0 and True are different


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool])
def test_tensors_come_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.randint(0, 2, (3, 4)).to(dtype)
    views = {"whole": tensor, "column": tensor[:, 1], "scalar": tensor[0, 0], "empty": tensor[:0], "again": tensor}
    save(tmp_path, 1, views, FACTS)
    loaded = load_newest(tmp_path, FACTS)
    assert loaded is not None
    for name, expected in views.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], expected)


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    path = save(tmp_path, 7, state(7), FACTS)
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "state.json", "state.safetensors"]


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step, state(step), FACTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]
    newest = load_newest(tmp_path, FACTS)
    assert newest is not None
    assert newest["step"] == 10


def test_one_that_is_saved_again_replaces_itself(tmp_path: Path) -> None:
    save(tmp_path, 3, state(1), FACTS)
    save(tmp_path, 3, state(2), FACTS)
    newest = load_newest(tmp_path, FACTS)
    assert newest is not None
    assert newest["step"] == 2


@pytest.mark.parametrize("file", ["manifest.json", "state.json", "state.safetensors"])
@pytest.mark.parametrize("how", ["cut", "flip", "gone", "empty"])
def test_a_damaged_one_is_passed_over_aloud(
    file: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1, state(1), FACTS)
    damaged = save(tmp_path, 2, state(2), FACTS) / file
    data = damaged.read_bytes()
    if how == "gone":
        damaged.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        damaged.write_bytes({"cut": data[:middle], "flip": flipped, "empty": b""}[how])
    loaded = load_newest(tmp_path, FACTS)
    assert loaded is not None
    assert loaded["step"] == 1
    assert "checkpoint passed over" in capsys.readouterr().err


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_of_the_manifest_is_believed(
    place: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Either it is passed over, or what is loaded is what was saved."""
    folder = tmp_path_factory.mktemp("checkpoints")
    manifest = save(folder, 2, state(2), FACTS) / "manifest.json"
    data = bytearray(manifest.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    manifest.write_bytes(bytes(data))
    loaded = load_newest(folder, FACTS)
    assert loaded is None or torch.equal(loaded["w"], state(2)["w"])


def test_one_of_other_code_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 1, state(1), {**FACTS, "code": "older"})
    assert load_newest(tmp_path, FACTS) is None
    assert "was made with {'code': 'older'}, this is {'code': 'c'}" in capsys.readouterr().err


class Malicious:
    """Its pickle leaves a file behind when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_in_place_of_tensors_is_never_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where whoever put it there sealed the folder anew."""
    save(tmp_path, 1, state(1), FACTS)
    forged = save(tmp_path, 2, state(2), FACTS)
    mark = tmp_path / "was-run"
    (forged / "state.safetensors").write_bytes(pickle.dumps(Malicious(mark)))
    seal(forged, {**FACTS, "step": 2})
    loaded = load_newest(tmp_path, FACTS)
    assert loaded is not None
    assert loaded["step"] == 1
    assert not mark.exists()
    assert "checkpoint passed over" in capsys.readouterr().err
    pickle.loads(pickle.dumps(Malicious(mark)))
    assert mark.exists(), "the payload is harmless, so this test shows nothing"


def test_what_a_killed_save_left_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1, state(1), FACTS)
    (tmp_path / ".step-00000002.abcd").mkdir()
    newest = load_newest(tmp_path, FACTS)
    assert newest is not None
    assert newest["step"] == 1


def test_a_full_disk_leaves_the_one_before(tmp_path: Path) -> None:
    """A real limit on file sizes, so that the write itself fails half way."""
    resource = pytest.importorskip("resource")
    save(tmp_path, 1, state(1), FACTS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(LowrankError, match=r"step-00000002: cannot be written: File too large") as failure:
            save(tmp_path, 2, {"w": torch.zeros(100_000)}, FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failure.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_newest(tmp_path, FACTS) is not None


def test_float32_moments_of_bfloat16_parameters_are_not_rounded() -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    moment, codes = torch.rand(4), torch.arange(4, dtype=torch.uint8)
    saved = optimizer.state_dict() | {"state": {0: {"moment": moment, "codes": codes, "step": 3}}}
    load_optimizer(optimizer, saved)
    state = optimizer.state[weight]
    assert state["moment"].dtype == torch.float32
    assert torch.equal(state["moment"], moment)
    assert torch.equal(state["codes"], codes)
    assert state["codes"].dtype == torch.uint8
    optimizer.load_state_dict(saved)  # what torch alone does: when this changes, `load_optimizer` can go
    assert optimizer.state[weight]["moment"].dtype == torch.bfloat16


def test_a_newer_file_is_not_believed_by_its_name_alone(tmp_path: Path) -> None:
    path = save(tmp_path, 1, state(1), FACTS)
    later = tmp_path / "step-00000009"
    later.mkdir()
    (later / "manifest.json").write_text(json.dumps({**FACTS, "step": 9}))
    newest = load_newest(tmp_path, FACTS)
    assert newest is not None
    assert newest["step"] == 1
    assert path.is_dir()


def test_the_random_state_comes_back() -> None:
    kept = checkpoint.rng_state()
    first = torch.rand(3)
    checkpoint.set_rng_state(kept)
    assert torch.equal(torch.rand(3), first)
