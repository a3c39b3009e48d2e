"""What a job pays before its first step: a worker imports torch, and of everything else what its run uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "transformers",
    "peft",
    "datasets",
    "pandas",
    "pyarrow",
    "bitsandbytes",
    "accelerate",
    "galore_torch",
    "sklearn",
    "scipy",
    "matplotlib",
    "tensorboard",
    "tokenizers",
    "lm_eval",
    "snakemake",
}


def loaded(code: str) -> set[str]:
    """Every module that a fresh process has after running the code."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return set(done.stdout.split())


@pytest.mark.parametrize("chain", ["lora", "hira+prune", "full+galore"])
def test_a_training_worker_imports_torch_and_the_parts_of_its_run(chain: str) -> None:
    """A transformers model adds what its class imports, when it is built."""
    parts = chain.split("+")
    found = loaded(
        "import lowrank.train.pack, lowrank.evaluate.pack\nfrom lowrank import registry\n"
        + "\n".join(f"registry.part({part!r})" for part in parts)
    )
    assert {"torch", "safetensors"} <= found
    assert not {name.split(".")[0] for name in found} & HEAVY
    assert not {"torch._dynamo", "torch._inductor", "lowrank.report", "lowrank.export", "lowrank.trainer"} & found
    wanted = {f"lowrank.methods.{part}" for part in parts}
    others = {f"lowrank.methods.{part}" for part in ("lora", "hira", "galore", "velora", "nf4", "lte", "relora")}
    assert wanted <= found
    assert not (others - wanted) & found


def test_planning_and_fetching_pay_for_less() -> None:
    assert "torch" not in loaded("import lowrank.cli, lowrank.plan, lowrank.data.fetch")


def test_a_plan_of_the_committed_studies_builds_no_model() -> None:
    code = "from lowrank.planning import make_plan\nfrom lowrank.study import studies\nmake_plan('laptop', studies())"
    found = loaded(code)
    assert "lowrank.trainer.protocols.hf_trainer" in found
    assert {name.split(".")[0] for name in found} & HEAVY <= {"tokenizers"}


def test_collections_pass_over_what_a_models_class_imports() -> None:
    """PeakMemory collects before each measurement; a fifth of a second of it went into looking at imports."""
    code = (
        "import gc\nfrom lowrank.models.load import skeleton\nfrom lowrank.spec import ModelSpec\n"
        "skeleton(ModelSpec(card='smoke_llama'), 'causal_lm', 0)\n"
        "assert gc.get_freeze_count() > 10 * len(gc.get_objects()), (gc.get_freeze_count(), len(gc.get_objects()))"
    )
    assert "transformers" in loaded(code)
