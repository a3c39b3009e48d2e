"""Protocols that measure: cost, adapter_sparsity, generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowrank.data.loader import open_splits
from lowrank.errors import ConfigError
from lowrank.evaluate.protocol import Outcome, Protocol, Subject
from lowrank.evaluate.protocols.adapter_sparsity import AdapterSparsity
from lowrank.evaluate.protocols.cost import Cost
from lowrank.evaluate.protocols.generate import Generate
from lowrank.methods.chain import Chain
from lowrank.models.load import load_model
from lowrank.spec import EvalSpec, RunSpec
from tests.training_lab import prepared, run_spec


@pytest.fixture(scope="module", autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("costs"))
        yield


def subject(chain: Any, task: str = "classification") -> Subject:
    spec = RunSpec.model_validate({**run_spec(chain).dump(), "task": task})
    batches = open_splits(prepared(spec), spec.data, task)["validation"]
    model = load_model(spec.model, task, 4, 0)
    attached = Chain.build(spec.chain).attach(model, 0)
    return Subject(model, attached, batches, spec, EvalSpec(batch_size=8), torch.device("cpu"))


def measure(protocol: type[Protocol], chain: Any, task: str = "classification", **options: Any) -> Outcome:
    return protocol(options).measure(subject(chain, task))


@pytest.mark.parametrize("chain", ["full", "lora", "nf4+lora", "hira", "lora+contextual_sparsity", "linear_probe"])
def test_cost_measures_every_kind_of_chain(chain: str) -> None:
    found = measure(Cost, chain, steps=1, repeats=1).metrics
    assert found.keys() == set(Cost.metrics)
    missing = [name for name, value in found.items() if value is None and name != "peak_memory_bytes"]
    assert not missing
    assert all(found[name] > 0 for name in ("step_time_s", "latency_s", "merged_throughput_per_s"))
    sizes = ("parameter_bytes", "gradient_bytes", "optimizer_bytes", "saved_activation_bytes")
    assert found["training_bytes"] == sum(found[name] for name in sizes)


def test_a_merged_model_computes_what_the_plain_one_does() -> None:
    plain = measure(Cost, "full", steps=1, repeats=1).metrics
    lora = measure(Cost, "lora", steps=1, repeats=1).metrics
    assert lora["inference_flops"] > plain["inference_flops"] == lora["merged_inference_flops"]
    assert lora["gradient_bytes"] < plain["gradient_bytes"]
    quantised = measure(Cost, "nf4+lora", steps=1, repeats=1).metrics
    assert quantised["parameter_bytes"] < lora["parameter_bytes"]


def test_a_merged_model_has_no_cost_before_merging() -> None:
    asked = subject("lora")
    asked.chain.merge()
    with pytest.raises(ConfigError, match="protocol cost: the model is merged already"):
        Cost().measure(asked)


def pruned(method: str) -> Subject:
    made = subject(["lora", {"part": "prune", "start": 1, "method": method, "sparsity": 0.5}])
    with torch.no_grad():  # as trained: an untouched B is zero
        for name, parameter in made.model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    made.chain.after_step(made.chain.optimizer(made.run.train), 1)
    return made


@pytest.mark.parametrize("method", ["magnitude", "topk", "structured"])
def test_zeros_are_counted_and_kernels_compared(method: str) -> None:
    found = AdapterSparsity({"repeats": 1, "rows": 16}).measure(pruned(method)).metrics
    assert found["zero_share"] == pytest.approx(0.5, abs=0.01)
    assert found["zeros"] == round(found["zero_share"] * found["values"])
    assert found["sparse_speedup"] == pytest.approx(found["dense_s"] / found["sparse_s"])
    head = 4 * 32 + 4
    assert found["nonzeros"] == found["values"] - found["zeros"] + head


def test_every_kernel_gives_the_same_product(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[list[torch.Tensor]] = []

    def keep(work: Any, *_: Any, **__: Any) -> float:
        results.append(work())
        return 1.0

    monkeypatch.setattr("lowrank.evaluate.protocols.adapter_sparsity.seconds", keep)
    AdapterSparsity({"rows": 8}).measure(pruned("structured"))
    dense, *others = results
    assert len(others) == 2
    for other in others:
        for one, two in zip(dense, other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_a_run_without_adapters_has_no_sparsity() -> None:
    assert set(measure(AdapterSparsity, "full").metrics.values()) == {None}


def test_greedy_samples_follow_the_model() -> None:
    asked = subject("lora", "causal_lm")
    found = Generate({"samples": 2, "prompt_tokens": 4, "new_tokens": 3}).measure(asked)
    assert [record["sample"] for record in found.records] == [1, 2]
    assert found.records[0].keys() == {"sample", "prompt", "continuation", "text"}
    assert found.metrics["new_tokens"] == 6
    rows = (asked.batches.split.lengths >= 7).nonzero().flatten()[:2]
    (batch,) = asked.batches.micro_batches(rows, 2)
    theirs = batch["input_ids"][:, :4]
    with torch.no_grad():
        for _ in range(3):
            logits = asked.model(input_ids=theirs).logits
            theirs = torch.cat([theirs, logits[:, -1:].argmax(-1)], dim=1)
    share = (theirs[:, 4:] == theirs[:, 3:-1]).double().mean().item()
    assert found.metrics["repeated_share"] == pytest.approx(share)
    agreement = (theirs[:, 4:] == batch["input_ids"][:, 4:7]).double().mean().item()
    assert found.metrics["agreement"] == pytest.approx(agreement)


def test_generation_needs_rows_that_are_long_enough() -> None:
    with pytest.raises(ConfigError, match=r"prompt_tokens 8 and new_tokens 90 make 98, the longest row .* has 16"):
        measure(Generate, "lora", "causal_lm", new_tokens=90)


def test_generation_of_another_task_has_no_numbers() -> None:
    found = measure(Generate, "lora")
    assert set(found.metrics.values()) == {None}
    assert not found.records
