"""From the GPU to the CPU and back: weights, checkpoints and scores are the same wherever a run was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lowrank.compositions import small
from lowrank.errors import Preempted
from lowrank.evaluate.pack import evaluate_pack
from lowrank.evaluate.protocols.cost import Cost
from lowrank.files import read_json
from lowrank.run_folder import WEIGHTS
from lowrank.signals import StopFlag
from lowrank.spec import EvalSpec, RunSpec
from lowrank.train.pack import train_pack
from tests.gpu.lab import CPU, CUDA_DOUBLE, DEVICE, assert_like, computing_on, in_double, train
from tests.test_train_resume import NAMED, StopAt
from tests.training_lab import history, member, pack_of, prepared, run_spec

COUNTED = ("zero_share", "zeros", "values", "nonzeros")
SCORED = ["full", "lora", "hira", "nf4+lora", "lte", "full+low_rank", "lora+contextual_sparsity", "lora+prune"]
TEXT = RunSpec.model_validate(
    {
        "task": "causal_lm",
        "model": {"card": "smoke_llama"},
        "data": {"card": "smoke_text", "max_length": 32, "validation_rows": 8, "test_rows": 8},
        "chain": "full",
        "train": {"lr": 1e-2, "steps": 6, "batch_size": 8, "eval_every": 3},
    }
)


def evaluated(spec: RunSpec, runs: Path, device: torch.device, name: str, asked: EvalSpec) -> dict[str, Any]:
    run = member(spec).run
    with computing_on(device):
        evaluate_pack([run], name, asked, "code", prepared(spec), StopFlag(), folder=runs)
    found: dict[str, Any] = read_json(runs / run / "eval" / f"{name}.json")
    assert found["status"] == "ok", found["cause"]
    return found


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("chain", SCORED)
def test_a_score_is_the_same_on_both(chain: str, merged: bool) -> None:
    """Of a run that the GPU trained; its last validation loss comes out again."""
    spec = run_spec([small(part) for part in chain.split("+")], dropout=0.0, steps=4, eval_every=2)
    runs = train(spec)
    asked = EvalSpec(split="validation", merged=merged)
    found = [evaluated(spec, runs, device, device.type, asked)["metrics"] for device in (DEVICE, CPU)]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-3 if "nf4" in chain else 1e-4)
    if "nf4" not in chain:  # whose codes are taken anew from the base where it is scored
        assert found[0]["loss"] == pytest.approx(history(member(spec).run, runs)[-1]["val_loss"], rel=1e-4)


@pytest.mark.parametrize("chain", ["full", "lora"])
def test_a_run_that_the_cpu_trained_is_scored_on_the_gpu(chain: str) -> None:
    spec = run_spec(chain, dropout=0.0, steps=4, eval_every=2)
    runs = train(spec, device=CPU)
    found = evaluated(spec, runs, DEVICE, "test", EvalSpec(split="validation"))["metrics"]
    assert found["loss"] == pytest.approx(history(member(spec).run, runs)[-1]["val_loss"], rel=1e-4)


def test_saved_weights_lie_on_the_cpu() -> None:
    spec = run_spec("lora", steps=2)
    tensors = load_file(train(spec) / member(spec).run / WEIGHTS)
    assert tensors
    assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}


GOES_ON = [chain for chain in NAMED if not {"nf4", "paged_adamw"} & {*chain}]


@pytest.mark.parametrize("first", ["begun on the GPU", "begun on the CPU"])
@pytest.mark.parametrize("chain", GOES_ON, ids="+".join)
def test_a_run_begun_on_one_is_finished_on_the_other(chain: tuple[str, ...], first: str) -> None:
    """In double, so that it ends where a run on one of them ends."""
    spec = run_spec([small(part) for part in chain], dropout=0.0, steps=6, eval_every=3, lr=1e-3)
    begun, finished = (DEVICE, CPU) if first == "begun on the GPU" else (CPU, DEVICE)
    with in_double():
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted), computing_on(begun):
            train_pack(pack_of(spec), StopAt(3, patch))
        assert_like(spec, train(spec, device=finished), train(spec, folder="one"), CUDA_DOUBLE, weigh=True)


def test_continuations_are_the_same() -> None:
    runs = train(TEXT)
    asked = EvalSpec(protocol="generate", options={"prompt_tokens": 4, "new_tokens": 8, "samples": 2})
    here, there = (evaluated(TEXT, runs, device, device.type, asked) for device in (CPU, DEVICE))
    assert [record["continuation"] for record in there["records"]] == [
        record["continuation"] for record in here["records"]
    ]
    assert there["metrics"]["clock"] == ("cpu" if DEVICE.type == "cpu" else "wall")
    assert there["metrics"]["tokens_per_s"] > 0


@pytest.mark.parametrize("chain", ["full", "lora", "nf4+lora", "lora+contextual_sparsity", "full+galore"])
def test_what_a_method_costs(chain: str) -> None:
    """Every number is taken on the device; what does not depend on it is the CPU's."""
    spec = run_spec([small(part) for part in chain.split("+")], steps=2)
    runs, asked = train(spec), EvalSpec(protocol="cost", options={"steps": 2, "repeats": 2}, batch_size=8)
    there, here = (evaluated(spec, runs, device, device.type, asked)["metrics"] for device in (DEVICE, CPU))
    assert there.keys() == set(Cost.metrics)
    print(f"\n{chain}: {there}")
    assert all(there[name] is not None for name in Cost.metrics if name != "peak_memory_bytes" or DEVICE.type == "cuda")
    for name in ("parameter_bytes", "gradient_bytes", "optimizer_bytes", "inference_flops", "merged_inference_flops"):
        assert there[name] == here[name]
    if DEVICE.type == "cuda":
        assert there["peak_memory_bytes"] > there["parameter_bytes"] + there["optimizer_bytes"]
        assert there["clock"] == "wall"


def test_how_sparse_adapters_are() -> None:
    spec = run_spec(["lora", {"part": "prune", "start": 1}], steps=2)
    runs, asked = train(spec), EvalSpec(protocol="adapter_sparsity")
    there, here = (evaluated(spec, runs, device, device.type, asked)["metrics"] for device in (DEVICE, CPU))
    assert [there[name] for name in COUNTED] == [here[name] for name in COUNTED]
    assert there["sparse_s"] > 0
