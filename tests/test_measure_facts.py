"""Counts, norms, peaks and the facts of the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lowrank.measure import PeakMemory, compute_device, counts, device_facts, rss_bytes, trunk_weights, weight_norms
from lowrank.measure import device as device_module
from lowrank.measure import memory as memory_module
from lowrank.methods.chain import Chain
from lowrank.methods.lora import Lora


class Tiny(nn.Module):
    """A trunk of a linear and a transposed layer, and a head."""

    base_model_prefix = "trunk"

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.ModuleDict({"up": nn.Linear(6, 10), "down": Conv1D(6, 10)})
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.classifier(self.trunk["down"](self.trunk["up"](x)))
        return y


def adapted_tiny() -> tuple[Tiny, Chain, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = Tiny()
    base = trunk_weights(model)
    chain = Chain([Lora(rank=2, alpha=6)]).attach(model)
    return model, chain, base


def test_norms_of_an_untouched_trunk() -> None:
    torch.manual_seed(0)
    model = Tiny()
    layers: Any = model.trunk
    expected = (layers["up"].weight.norm() + layers["down"].weight.norm()) / 2
    assert weight_norms(model) == {"weight_norm_mean": pytest.approx(expected.item())}
    assert weight_norms(model, trunk_weights(model))["delta_norm_mean"] == 0


def test_norms_see_the_adapters_and_do_not_change_by_merging() -> None:
    model, chain, base = adapted_tiny()
    assert {name: tuple(weight.shape) for name, weight in base.items()} == {"trunk.up": (10, 6), "trunk.down": (6, 10)}
    assert weight_norms(model, base)["delta_norm_mean"] == 0
    deltas = []
    for name in base:
        adapter: Any = model.get_submodule(name).adapters["lora"]  # type: ignore[index]
        nn.init.normal_(adapter.lora_B)
        deltas.append(3 * adapter.lora_B @ adapter.lora_A)
    attached = weight_norms(model, base)
    assert attached["delta_norm_mean"] == pytest.approx(torch.stack([d.norm() for d in deltas]).mean().item(), rel=1e-5)
    whole = torch.stack([(base[name] + delta).norm() for name, delta in zip(base, deltas, strict=True)]).mean()
    assert attached["weight_norm_mean"] == pytest.approx(whole.item(), rel=1e-5)
    chain.merge()
    assert weight_norms(model, base) == pytest.approx(attached, rel=1e-5)


def test_counts_take_shared_parameters_once() -> None:
    model, _, _ = adapted_tiny()
    total = 70 + 66 + 21 + 2 * (2 * 6 + 10 * 2)
    assert counts(model) == {"parameters": total, "trainable_parameters": 64 + 21}
    tied = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    tied[1].weight = tied[0].weight  # type: ignore[assignment]
    assert counts(tied) == {"parameters": 20, "trainable_parameters": 20}


def test_peak_sees_what_was_freed_again() -> None:
    megabytes = 64 * 2**20
    with PeakMemory(torch.device("cpu")) as peak:
        torch.ones(megabytes // 4)
    assert peak.rss_bytes is not None
    assert peak.rss_growth_bytes is not None
    assert 0.95 * megabytes < peak.rss_growth_bytes < 1.5 * megabytes
    now = rss_bytes()
    assert now is not None
    assert now < peak.rss_bytes - 0.5 * megabytes
    assert peak.cuda_bytes is None
    with PeakMemory() as after:
        pass
    assert after.rss_growth_bytes is not None
    assert after.rss_growth_bytes < 0.1 * megabytes


def test_peak_is_none_where_the_kernel_does_not_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_module, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    with PeakMemory() as peak:
        pass
    assert peak.rss_bytes is peak.rss_growth_bytes is None
    monkeypatch.setattr(memory_module, "_STATUS", tmp_path / "missing")
    assert rss_bytes() is None


@pytest.mark.parametrize(
    ("cpuinfo", "model", "amx"),
    [
        (
            "processor\t: 0\nmodel name\t: Fast CPU\nflags\t\t: avx2 amx_bf16 amx_tile\n\nprocessor\t: 1\n",
            "Fast CPU",
            True,
        ),
        ("processor\t: 0\nmodel name\t: Slow CPU\nflags\t\t: avx2 amx_bf16_like\n", "Slow CPU", False),
        (None, None, None),
    ],
)
def test_device_facts(
    cpuinfo: str | None, model: str | None, amx: bool | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(device_module, "_CPUINFO", path)
    facts = device_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["amx_bf16"] is amx
    assert facts["cpu_model"]
    if model is not None:
        assert facts["cpu_model"] == model
    assert facts["torch_threads"] == torch.get_num_threads()
    assert facts["torch_version"] == torch.__version__
    assert (facts["gpu"] is None) == (not torch.cuda.is_available())


def test_single_precision_is_whole_where_a_process_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    compute_device()
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
