"""Files appear whole or not at all, seals notice what changed, a lock is one process's."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank import files
from lowrank.errors import ConfigError, IntegrityError, LowrankError
from lowrank.files import check_seal, locked, read_json, replacing, replacing_folder, seal, write_json
from lowrank.yaml_files import read_yaml


class Interrupted(BaseException):
    """Not an Exception, as KeyboardInterrupt."""


def test_a_file_that_is_not_finished_does_not_replace_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise Interrupted

    with pytest.raises(Interrupted):
        half()
    assert read_json(path) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_that_is_not_finished_does_not_replace_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with replacing_folder(path) as temporary:
        (temporary / "a").write_text("whole")

    def half() -> None:
        with replacing_folder(path) as temporary:
            (temporary / "a").write_text("half")
            raise Interrupted

    with pytest.raises(Interrupted):
        half()
    assert (path / "a").read_text() == "whole"
    with replacing_folder(path) as temporary:
        (temporary / "b").write_text("new")
    assert os.listdir(path) == ["b"]
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_holds_no_nan(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_refuses_is_one_sentence(number: int, tmp_path: Path) -> None:
    with (
        pytest.raises(LowrankError, match=f"run: cannot be written: {os.strerror(number)}"),
        replacing_folder(tmp_path / "run"),
    ):
        raise OSError(number, os.strerror(number), "somewhere")


def test_other_failures_inside_a_block_keep_their_name(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), replacing(tmp_path / "a"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


class TestSeal:
    @pytest.fixture
    def sealed(self, tmp_path: Path) -> Path:
        folder = tmp_path / "folder"
        (folder / "inner").mkdir(parents=True)
        (folder / "a").write_bytes(bytes(range(50)))
        (folder / "inner" / "b").write_text("b")
        seal(folder, {"fact": 1})
        return folder

    def test_names_every_file(self, sealed: Path) -> None:
        manifest = check_seal(sealed)
        assert manifest["fact"] == 1
        assert set(manifest["files"]) == {"a", "inner/b"}

    @given(place=st.integers(0, 49), bit=st.integers(0, 7))
    def test_notices_any_bit(self, place: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("sealed")
        data = bytearray(range(50))
        (folder / "a").write_bytes(bytes(data))
        seal(folder, {})
        data[place] ^= 1 << bit
        (folder / "a").write_bytes(bytes(data))
        with pytest.raises(IntegrityError, match=r"a: sha256 is"):
            check_seal(folder)

    def test_notices_a_missing_file(self, sealed: Path) -> None:
        (sealed / "inner" / "b").unlink()
        with pytest.raises(IntegrityError, match=r"inner/b: named in manifest.json, but not there"):
            check_seal(sealed)

    @pytest.mark.parametrize("text", ["[]", "{}", '{"files": 1}', "", '{"files"', "\udcff"])
    def test_refuses_a_manifest_that_names_no_files(self, text: str, sealed: Path) -> None:
        (sealed / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(IntegrityError, match=r"manifest\.json: (names no files|not valid JSON)"):
            check_seal(sealed)


class TestLock:
    def test_refuses_a_second_holder_and_lets_go(self, tmp_path: Path) -> None:
        path = tmp_path / "work" / "lock"
        with locked(path, "busy"), pytest.raises(LowrankError, match=r"^busy$"), locked(path, "busy"):
            pass
        with locked(path, "busy"):
            pass

    def test_is_let_go_by_a_failure(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock", "busy"):
            raise ZeroDivisionError
        with locked(tmp_path / "lock", "busy"):
            pass

    def test_a_file_removed_by_its_holder_is_not_held(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between the second's opening and its locking, the first removes the file and lets go."""
        path = tmp_path / "lock"
        flock, removed = files.fcntl.flock, []

        def remove_first(handle: object, how: int) -> None:
            if not removed:
                removed.append(path.unlink())
            flock(handle, how)  # type: ignore[arg-type]

        monkeypatch.setattr(files.fcntl, "flock", remove_first)
        with locked(path, "busy"):
            assert path.is_file()

    def test_one_of_many_gets_it(self, tmp_path: Path) -> None:
        held: list[int] = []
        start, end = threading.Barrier(8), threading.Barrier(8)

        def attempt(number: int) -> None:
            start.wait()
            try:
                with locked(tmp_path / "lock", "busy"):
                    held.append(number)
                    end.wait(10)
            except LowrankError:
                end.wait(10)

        threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(held) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("a: [1", "not valid YAML.*line 1"),
        ("!!python/object:os.x {}", "not valid"),
        ("arms:\n  lora: 1\n  full: 2\n  lora: 3\n", "'lora' stands here twice.*line 4"),
    ],
)
def test_yaml_that_cannot_be_read(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)
