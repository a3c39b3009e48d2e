"""Exported runs: PEFT and transformers load them and say the same; what has no such form is refused."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lowrank import cards
from lowrank.cli import app
from lowrank.errors import ConfigError, IntegrityError
from lowrank.export import check as fresh
from lowrank.export import export, export_run
from lowrank.files import read_json
from lowrank.signals import StopFlag
from lowrank.spec import RunSpec
from lowrank.strict import parse
from lowrank.train.pack import Member, Pack, train_pack
from tests.card_files import word_tokenizer
from tests.export_lab import CONFIGS, LORA, Lab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fresh process's own function, here: a process of its own costs seconds, and two tests pay them."""

    def check(folder: Path, probe: dict[str, torch.Tensor], base: Path | None, about: str) -> dict[str, Any]:
        save_file(probe, tmp_path / "probe.safetensors")
        return fresh.check(folder, tmp_path / "probe.safetensors", base)

    monkeypatch.setattr(export, "_run", check)


PEFT: dict[str, tuple[str, list[Any]]] = {
    "lora": ("bert", [LORA]),
    "lora, head adapted": ("bert", [{**LORA, "head": "adapted"}]),
    "lora, head frozen": ("distilbert", [{**LORA, "head": "frozen", "targets": ["q_lin", "v_lin"]}]),
    "lora, all biases": ("distilbert", [{**LORA, "bias": "all"}]),
    "lora, biases": ("bert", [{**LORA, "bias": "adapted", "targets": ["query"]}]),
    "lora, rest trained": ("gpt2", [{**LORA, "rest": "trained"}]),
    "lora, integer scaling": ("llama", [{**LORA, "integer_scaling": True}]),
    "lora on Conv1D": ("gpt2", [LORA]),
    "lora on a tied head": ("gpt2", [{**LORA, "targets": ["c_attn", "lm_head"]}]),
    "lora+velora": ("llama", [{**LORA, "targets": ["v_proj"]}, {"part": "velora", "layers": "v", "num_groups": 4}]),
    "lora+velora, in part": ("llama", [LORA, {"part": "velora", "num_groups": 4}]),
    "lora+prune": ("bert", [LORA, {"part": "prune", "start": 1}]),
    "lora+paged_adamw": ("bert", [LORA, "paged_adamw"]),
    "hira": ("bert", [{"part": "hira", "rank": 2}]),
    "hira on Conv1D": ("gpt2", [{"part": "hira", "rank": 2}]),
    "hira+velora": ("llama", [{"part": "hira", "rank": 2}, {"part": "velora", "num_groups": 4}]),
    "nf4+lora": ("llama", ["nf4", LORA]),
}


@pytest.mark.parametrize("name", PEFT)
def test_peft_loads_it_and_says_the_same(name: str, lab: Lab, in_process: None) -> None:
    lab.run(*PEFT[name])
    out = lab.export("peft")
    facts = read_json(out / "export.json")
    assert facts["largest_logit"] > 0
    drift, moved = facts["largest_logit_drift"], lab.moved()
    # A 4-bit base is multiplied in bfloat16 by bitsandbytes in evaluation, so its drift is larger.
    assert drift < (0.1 if facts["quantization"] else 1e-4) * moved


MERGED: dict[str, tuple[str, list[Any]]] = {
    "full": ("bert", ["full"]),
    "linear_probe": ("bert", ["linear_probe"]),
    "lora": ("distilbert", [LORA]),
    "lora on a tied head": ("gpt2", [{**LORA, "targets": ["c_attn", "lm_head"]}]),
    "rest trained": ("gpt2", [{**LORA, "rest": "trained"}]),
    "relora": ("llama", [LORA, {"part": "relora", "merge_every": 2, "restart_warmup_steps": 1}]),
    "alpha_merge": ("llama", [LORA, "alpha_merge"]),
    "lte": ("gpt2", [{"part": "lte", "num_lora_heads": 2, "rank": 2, "targets": ["c_attn", "lm_head"]}]),
    "mhlora": ("llama", [{"part": "mhlora", "rank": 2}]),
    "galore": ("llama", ["full", {"part": "galore", "rank": 2}]),
    "velora": ("llama", ["full", {"part": "velora", "num_groups": 4}]),
    "hira": ("bert", [{"part": "hira", "rank": 2}]),
    "contextual_sparsity": ("llama", [LORA, "contextual_sparsity"]),
    "nf4+lora": ("gpt2", ["nf4", LORA]),
}


@pytest.mark.parametrize("name", MERGED)
def test_transformers_loads_a_merged_model_and_says_the_same(name: str, lab: Lab, in_process: None) -> None:
    lab.run(*MERGED[name])
    out = lab.export("merged")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "export.json"} <= {
        path.name for path in out.iterdir()
    }
    assert read_json(out / "export.json")["largest_logit_drift"] < 1e-4 * lab.moved()


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_half_precision_and_cut_layers(to: str, lab: Lab, in_process: None) -> None:
    lab.run("bert", [LORA], dtype="bfloat16", layers=1)
    out = lab.export(to)
    facts = read_json(out / "export.json")
    assert facts["largest_logit_drift"] <= facts["allowed_drift"] * facts["largest_logit"]
    config = read_json((out / "base" if to == "peft" else out) / "config.json")
    assert (config["num_hidden_layers"], config["dtype"]) == (1, "bfloat16")


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_a_fresh_process_checks_what_was_written(to: str, lab: Lab) -> None:
    lab.run("bert", [LORA])
    out = lab.export(to)
    facts = read_json(out / "export.json")
    assert facts["largest_logit_drift"] < 1e-5
    assert read_json((out / "base" if to == "peft" else out) / "config.json")["id2label"] == {"0": "a", "1": "b"}
    said = (out / "README.md").read_text()
    assert "| licence of the base | MIT |" in said
    assert cards.model_card("bert").pin in said
    assert "| last validation loss | 0.5 |" in said
    snippet = said.split("```python\n")[1].split("```")[0]
    told: dict[str, Any] = {}
    exec(snippet, told)  # what the README says is what works
    assert not told["model"].training


def test_a_base_from_the_hub_is_named_not_copied(
    lab: Lab, in_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lab.hub("distilbert", monkeypatch)
    lab.run("distilbert", [LORA], layers=1)
    out = lab.export("peft")
    assert [path.name for path in (out / "base").iterdir()] == ["config.json"]
    config = read_json(out / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/distilbert", "a" * 40)
    assert read_json(out / "export.json")["largest_logit_drift"] < 1e-4 * lab.moved()
    assert 'from_pretrained("owner/distilbert", revision="' in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("family", "chain", "words"),
    [
        ("llama", ["full", {"part": "galore", "rank": 2}], "chain full.galore has no PEFT form: it has no adapters"),
        ("llama", [{"part": "lte", "num_lora_heads": 2, "rank": 2}], "it has adapters of kind lte"),
        ("llama", [LORA, "alpha_merge"], r"'model.layers.0.*base.weight' differs from the base"),
        ("llama", ["full", {"part": "velora", "num_groups": 4}], "no adapters"),
        ("bert", [{"part": "hira", "rank": 2, "form": "product"}], "hira's form is 'product'"),
        ("bert", [{"part": "hira", "rank": 2, "bias": "adapted"}], "PEFT's hira trains none"),
        ("llama", ["nf4", {"part": "hira", "rank": 2}], "stored in 4 bits"),
    ],
)
def test_refuses_what_has_no_peft_form(family: str, chain: list[Any], words: str, lab: Lab) -> None:
    lab.run(family, chain)
    with pytest.raises(ConfigError, match=f"{words}.*allowed: `--to merged`"):
        lab.export("peft")
    assert not lab.out.exists()


def test_refuses_to_call_a_4_bit_model_plain(lab: Lab) -> None:
    lab.run("llama", [{"part": "nf4", "requantize": True}, LORA])
    with pytest.raises(ConfigError, match="does not merge into plain layers"):
        lab.export("merged")


def test_refuses_a_run_without_weights(lab: Lab) -> None:
    lab.run("bert", [LORA], keep=False)
    with pytest.raises(ConfigError, match=r"kept no weights; set `keep_weights: all`.*`lowrank rerun a-run`"):
        lab.export("peft")


def test_refuses_a_run_that_is_not_there(lab: Lab) -> None:
    lab.run("bert", [LORA])
    with pytest.raises(ConfigError, match=r"no run 'b-run' under .*did you mean 'a-run'"):
        export_run("b-run", "peft", runs=lab.root / "runs")


def test_refuses_a_base_that_moved(lab: Lab) -> None:
    lab.run("bert", [LORA])
    lab.model("bert", {"tokenizer.json": word_tokenizer()}, config={**CONFIGS["bert"], "hidden_act": "relu"})
    with pytest.raises(IntegrityError, match=r"trained on base bert@.*is now bert@"):
        lab.export("peft")


def test_refuses_logits_that_are_not_the_runs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.run("bert", [LORA])
    monkeypatch.setattr(export, "_run", lambda *_: {"drift": 0.01, "largest": 1.0})
    with pytest.raises(IntegrityError, match=r"differ by 0.01 .* largest is 1; allowed: 0.0001"):
        lab.export("merged")
    assert not lab.out.exists()


def test_says_why_the_fresh_process_failed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.run("llama", ["nf4", LORA])
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nAssertionError: N must be divisible by block_n\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(IntegrityError, match=r"cannot be loaded and run: AssertionError: N .*bitsandbytes' CPU kernel"):
        lab.export("peft")


def test_an_adapter_that_matches_nothing_is_a_fault(lab: Lab, in_process: None) -> None:
    lab.run("bert", [LORA])
    out = lab.export("peft")
    file = out / "adapter_model.safetensors"
    save_file({name.replace("encoder", "decoder"): tensor for name, tensor in load_file(file).items()}, file)
    found = fresh.check(out, lab.root / "probe.safetensors", None)
    assert "the adapter's tensors match nothing" in found["fault"]


def test_another_tokenizer_is_a_fault(lab: Lab, in_process: None) -> None:
    lab.run("bert", [LORA])
    out = lab.export("merged")
    (out / "tokenizer.json").write_text(word_tokenizer(("[PAD]", "[UNK]")))
    assert "the tokenizer gives" in fresh.check(out, lab.root / "probe.safetensors", None)["fault"]


def test_the_fresh_process_knows_nothing_of_this_project() -> None:
    tree = ast.parse(export.CHECK.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in imports if "lowrank" in ast.unparse(node)]


def test_a_run_of_the_trainer(lab: Lab, in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab.root)  # the trainer reads downloads below the current folder
    monkeypatch.setattr("lowrank.data.fetch.DOWNLOADS", lab.root / "downloads")
    (lab.root / "resources").mkdir()
    (lab.root / "resources" / "downloads").symlink_to(lab.root / "downloads")
    prepared = lab.prepare()
    spec = parse(RunSpec, lab.spec("words", [LORA], "classification"), "test")
    pins = cards.run_pins(cards.model_card("words"), cards.data_card("rows"))
    member = Member("a-run", spec, pins, "code")
    train_pack(Pack("p", (member,), (("a-run",),), prepared, runs=lab.root / "runs"), StopFlag())
    assert read_json(lab.export("peft") / "export.json")["largest_logit_drift"] < 1e-4 * lab.moved()


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("lowrank.export.export_run", lambda *arguments: asked.append(arguments))
    assert CliRunner().invoke(app, ["export", "a-run", "--to", "merged", "--out", "there"]).exit_code == 0
    assert asked == [("a-run", "merged", Path("there"))]
    assert CliRunner().invoke(app, ["export", "a-run", "--to", "onnx"]).exit_code == 2
