"""The code digest: what a run can reach, and nothing that cannot change a number."""

from __future__ import annotations

import shutil

import pytest

from lowrank import digest
from lowrank.spec import RunSpec
from lowrank.strict import parse


def spec(chain):
    return parse(
        RunSpec,
        {
            "task": "classification",
            "model": {"card": "m"},
            "data": {"card": "d"},
            "chain": chain,
            "train": {"lr": 1, "steps": 1},
        },
        "x",
    )


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the package that a test may edit; returns its folder."""
    folder = tmp_path / "lowrank"
    shutil.copytree(digest.PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(digest, "PACKAGE", folder)
    return folder


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    digest._source.cache_clear()


def digests():
    return {name: digest.train_digest(spec(name)) for name in ("lora", "full", "galore+full")}


class TestWhatChangesIt:
    def test_a_comment_or_docstring_does_not(self, copy):
        before = digests()
        edit(copy / "methods/lora.py", '"""LoRA:', '"""Low-rank adaptation, LoRA:')
        edit(copy / "train/loop.py", "import time", "import time  # a remark")
        edit(copy / "methods/lora.py", "import math", "import math\n\n")
        assert digests() == before

    def test_a_part_reaches_only_its_runs(self, copy):
        before = digests()
        edit(copy / "methods/lora.py", "1 / math.sqrt(in_features)", "2 / math.sqrt(in_features)")
        after = digests()
        assert after["lora"] != before["lora"]
        assert after["full"] == before["full"]
        assert after["galore+full"] == before["galore+full"]

    def test_the_loop_reaches_all(self, copy):
        before = digests()
        edit(copy / "train/loop.py", "EVAL_BATCH_SIZE = 128", "EVAL_BATCH_SIZE = 64")
        after = digests()
        assert all(after[name] != before[name] for name in before)

    def test_a_message_does_not(self, copy):
        before = digests()
        edit(copy / "console.py", "LINE_EVERY_S = 10.0", "LINE_EVERY_S = 20.0")
        edit(copy / "errors.py", "exit_code = 2", "exit_code = 9")
        assert digests() == before

    def test_the_report_does_not(self):
        assert not any(name.startswith("lowrank.report") for name in digest.closure(["lowrank.train.pack"]))


class TestClosure:
    def test_follows_imports_inside_functions(self, copy):
        (copy / "outer.py").write_text("def f():\n    from lowrank import inner\n    return inner\n")
        (copy / "inner.py").write_text("X = 1\n")
        assert {"lowrank.outer", "lowrank.inner"} <= digest.closure(["lowrank.outer"])

    def test_does_not_follow_the_registry(self):
        reached = digest.closure(["lowrank.train.pack"])
        assert "lowrank.registry" in reached
        assert "lowrank.methods.lora" not in reached

    def test_a_chain_brings_its_parts(self):
        assert "lowrank.methods.adapter" in digest.closure(["lowrank.methods.lora"])
