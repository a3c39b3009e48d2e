"""The README of an exported folder: what it is, how it is loaded, where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowrank.cards import ModelCard
from lowrank.files import read_json, write_text
from lowrank.run_folder import EVALUATIONS
from lowrank.sources import HubSource
from lowrank.spec import RunSpec

LOAD_MERGED = """from transformers import {auto}

model = {auto}.from_pretrained("{folder}")"""

LOAD_PEFT = """from peft import PeftModel
from transformers import AutoConfig, {imports}

config = AutoConfig.from_pretrained("{folder}/base")
base = {auto}.from_pretrained({weights}, config=config, dtype=config.dtype{quantization})
model = PeftModel.from_pretrained(base, "{folder}")"""


def write_model_card(path: Path, run: Path, out: Path, spec: RunSpec, card: ModelCard, facts: dict[str, Any]) -> None:
    """Writes the README.

    Args:
        path: the file.
        run: the folder of the run.
        out: where the export will lie.
        spec: of the run.
        card: the base.
        facts: what `export.json` holds.
    """
    base = facts["base"]
    head = [f"library_name: {_library(facts)}", *([f"base_model: {base['repository']}"] if base["repository"] else [])]
    chain = [{"part": options.part, **options.model_dump(mode="json")} for options in spec.chain]
    train = spec.train.model_dump(mode="json", exclude_none=True)
    method = f"a PEFT adapter of {spec.model.card}" if facts["to"] == "peft" else "a plain model, everything merged in"
    lines = [
        *("---", *head, "---", ""),
        f"# {facts['run']}",
        "",
        f"The run `{facts['run']}`, exported as {method}.",
        "",
        "```python",
        _loading(out, facts),
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| base | {card.title}, <{card.homepage}> |",
        f"| revision of the base | {base['revision'] or base['pin']} |",
        f"| licence of the base | {card.licence} |",
        f"| method | `{json.dumps(chain)}` |",
        f"| training | `{json.dumps(train)}` |",
        f"| data | {spec.data.card} |",
        f"| seed | {spec.seed} |",
        f"| largest difference of a logit from the run's | {facts['largest_logit_drift']:.2g} "
        f"(largest logit {facts['largest_logit']:.2g}) |",
        *(f"| {name} | {value} |" for name, value in _metrics(run)),
        *(line for note in facts["notes"] for line in ("", note)),
        "",
    ]
    write_text(path, "\n".join(lines))


def _library(facts: dict[str, Any]) -> str:
    return "peft" if facts["to"] == "peft" else "transformers"


def _loading(out: Path, facts: dict[str, Any]) -> str:
    if facts["to"] == "merged":
        return LOAD_MERGED.format(auto=facts["auto_class"], folder=out)
    base, stored = facts["base"], facts["quantization"]
    weights = f'"{out}/base"' if base["stored"] else f'"{base["repository"]}", revision="{base["revision"]}"'
    return LOAD_PEFT.format(
        auto=facts["auto_class"],
        imports=facts["auto_class"] + (", BitsAndBytesConfig" if stored else ""),
        folder=out,
        weights=weights,
        quantization=f",\n    quantization_config=BitsAndBytesConfig(**{stored})" if stored else "",
    )


def _metrics(run: Path) -> list[tuple[str, str]]:
    """Validation loss of the run, and what its evaluations measured."""
    found = [("last validation loss", read_json(run / "manifest.json")["metrics"].get("last_val_loss"))]
    for path in sorted((run / EVALUATIONS).glob("*.json")):
        record = read_json(path)
        found += [(f"{name} ({path.stem})", value) for name, value in record["metrics"].items()]
    return [(name, f"{value:.6g}") for name, value in found if isinstance(value, int | float)]


def origin(card: ModelCard, pin: str, stored: bool) -> dict[str, Any]:
    """Which base it is, and whether its weights lie in the folder."""
    source = card.source
    hub = isinstance(source, HubSource)
    return {
        "card": card.name,
        "repository": source.repository if isinstance(source, HubSource) else None,
        "revision": source.revision if isinstance(source, HubSource) else None,
        "pin": pin,
        "stored": stored or not hub,
    }
