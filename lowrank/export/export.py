"""Exports a run, and proves in a fresh process that what was written computes what was trained."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lowrank.cards import ModelCard, data_card, model_card, run_pins, tokenizer_card
from lowrank.console import say
from lowrank.data.fetch import DOWNLOADS, files_of
from lowrank.errors import ConfigError, IntegrityError
from lowrank.export.image_processor import write_image_processor
from lowrank.export.model_card import origin, write_model_card
from lowrank.export.peft_form import PeftForm, peft_form
from lowrank.export.probe import EXAMPLES, TOKENS, probe_inputs, probe_logits
from lowrank.export.tokenizer import write_tokenizer
from lowrank.files import check_seal, read_json, replacing_folder, write_json
from lowrank.methods.chain import Chain
from lowrank.models.load import load_model, load_run, skeleton
from lowrank.run_folder import RUNS, SPEC, WEIGHTS, read_spec
from lowrank.spec import RunSpec
from lowrank.strict import suggest

EXPORTS = Path("results/exports")
CHECK = Path(__file__).with_name("check.py")

ALLOWED_DRIFT = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Of the largest logit, by the type that the base is held in: rounding through a few layers, in another order."""

ALLOWED_DRIFT_4BIT = 5e-2
"""Over a 4-bit base: bitsandbytes may multiply in bfloat16 in evaluation, whatever the base's type."""

_ABOUT_4BIT = (
    ". Over a 4-bit base this may be bitsandbytes' CPU kernel, which fails, or errs, on some widths that 64 does not "
    "divide; `--to merged` does not use it"
)

To = Literal["peft", "merged"]


def export_run(run: str, to: To, out: Path | None = None, runs: Path = RUNS, downloads: Path = DOWNLOADS) -> Path:
    """Writes a run as a PEFT folder, or as a plain model with everything merged in.

    The folder appears in one step, when a fresh process that knows transformers and PEFT only has loaded it and
    its logits are those of the run.

    Args:
        run: id of a finished run.
        to: `peft` or `merged`.
        out: the folder to write; None is `results/exports/<run>/<to>`.
        runs: where runs lie.
        downloads: where fetched cards lie.

    Returns:
        The folder.

    Raises:
        ConfigError: no such run, no weights kept, or a chain without that form.
        IntegrityError: the base is not the one that was trained on, or the export does not compute the same.
    """
    spec, labels = _finished(run, runs), list[str]()
    card = model_card(spec.model.card)
    if spec.task == "classification":
        labels = list(data_card(spec.data.card).labels)
        labels += [f"unused {index}" for index in range(len(labels), spec.model.head_classes or 0)]
    pin = _same_base(run, spec, card, runs)
    model, chain = load_run(spec, len(labels), downloads=downloads)
    weights = runs / run / WEIGHTS
    chain.load_changed(load_file(weights), str(weights))
    inputs = probe_inputs(model)
    with chain.eval_mode() as trained:
        logits = probe_logits(trained, inputs)
    out = out or EXPORTS / run / to
    with _quiet(), replacing_folder(out) as folder:
        tokenizer = write_tokenizer(folder, files_of(tokenizer_card(card), downloads), model)
        write_image_processor(folder, data_card(spec.data.card).image, spec.data.image_size)
        facts: dict[str, Any] = {
            "run": run,
            "to": to,
            "auto_class": _auto_class(spec, model),
            "tokenizer": tokenizer,
            "quantization": None,
            "notes": [],
            "base": origin(card, pin, stored=to == "merged"),
        }
        if to == "merged":
            _write_merged(folder, chain, spec, labels)
        else:
            form = peft_form(model, chain, spec.task)
            base = load_model(spec.model, spec.task, len(labels), spec.seed, downloads)
            facts |= {"quantization": form.quantization, "notes": list(form.notes)}
            facts["base"] = origin(card, pin, stored=form.head_is_adapted)
            _write_peft(folder, out, base, form, facts["base"], labels)
        facts["versions"] = {name: version(name) for name in ("torch", "transformers", "peft")}
        facts["compared_on"] = f"{EXAMPLES} examples, up to {TOKENS} tokens"
        write_json(folder / "export.json", facts)
        base_files = None if facts["base"]["stored"] else files_of(card, downloads)
        about = _ABOUT_4BIT if facts["quantization"] else ""
        found = _check(folder, {**inputs, "logits": logits}, base_files, about)
        allowed = ALLOWED_DRIFT_4BIT if facts["quantization"] else ALLOWED_DRIFT[spec.model.dtype]
        facts |= {"largest_logit_drift": found["drift"], "largest_logit": found["largest"], "allowed_drift": allowed}
        if not found["drift"] <= allowed * found["largest"]:
            raise IntegrityError(
                f"{run}: loaded anew, the export's logits differ by {found['drift']:.3g} from the run's, whose largest "
                f"is {found['largest']:.3g}; allowed: {allowed:g} of that. Nothing was written{about}"
            )
        write_json(folder / "export.json", facts)
        write_model_card(folder / "README.md", runs / run, out, spec, card, facts)
    say(f"{out}: written; the largest logit drift is {facts['largest_logit_drift']:.2g}")
    return out


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of small files, and none of PEFT's advice: the fresh process says what matters."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _finished(run: str, runs: Path) -> RunSpec:
    if not (runs / run).is_dir():
        raise ConfigError(f"no run {run!r} under {runs}{suggest(run, [path.name for path in runs.glob('*')])}")
    manifest = check_seal(runs / run)
    if manifest["status"] != "ok":
        raise ConfigError(f"run {run!r} is {manifest['status']}: {manifest['cause']}; allowed: a run that is ok")
    if WEIGHTS not in manifest["files"]:
        raise ConfigError(
            f"run {run!r} kept no weights; set `keep_weights: all` for its arm in the study, and "
            f"`lowrank rerun {run}` lets the workflow train it again"
        )
    return read_spec(run, runs)


def _same_base(run: str, spec: RunSpec, card: ModelCard, runs: Path) -> str:
    trained_on = read_json(runs / run / SPEC)["pins"]["model"]
    now = run_pins(card, data_card(spec.data.card))["model"]
    if now != trained_on:
        raise IntegrityError(f"{runs / run}: trained on base {trained_on}, but model card {card.name!r} is now {now}")
    return card.pin


def _auto_class(spec: RunSpec, model: nn.Module) -> str:
    if spec.task == "causal_lm":
        return "AutoModelForCausalLM"
    images = getattr(model, "main_input_name", "input_ids") == "pixel_values"
    return "AutoModelForImageClassification" if images else "AutoModelForSequenceClassification"


def _write_merged(folder: Path, chain: Chain, spec: RunSpec, labels: list[str]) -> None:
    model: Any = chain.merge()
    plain = skeleton(spec.model, spec.task, len(labels)).state_dict().keys()
    if model.state_dict().keys() != plain:
        surplus = sorted(model.state_dict().keys() ^ plain)[0]
        raise ConfigError(f"chain {chain.name} does not merge into plain layers: {surplus!r} is left; no merged form")
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False  # a merge into the head gave it a weight of its own
    _name_labels(model, labels)
    model.save_pretrained(folder)


def _write_peft(folder: Path, out: Path, base: Any, form: PeftForm, origin: dict[str, Any], labels: list[str]) -> None:
    from peft import get_peft_model

    _name_labels(base, labels)
    if origin["stored"]:
        base.save_pretrained(folder / "base")
    else:
        base.config.architectures = [type(base).__name__]
        base.config.save_pretrained(folder / "base")
    model: Any = get_peft_model(base, form.config)
    # Now, since get_peft_model takes the name from the model, which came from no repository.
    form.config.base_model_name_or_path = str(out / "base") if origin["stored"] else origin["repository"]
    form.config.revision = None if origin["stored"] else origin["revision"]
    inner = model.base_model.model
    with torch.no_grad():
        for name, tensor in form.tensors.items():
            inner.get_parameter(name).copy_(tensor)
    model.save_pretrained(folder, save_embedding_layers=False)


def _name_labels(model: Any, labels: list[str]) -> None:
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}


def _check(folder: Path, probe: dict[str, Tensor], base_files: Path | None, about: str) -> dict[str, float]:
    """Loads the folder in a fresh process, offline, and returns what it found.

    Raises:
        IntegrityError: it cannot be loaded, or not all of it.
    """
    found = _run(folder, probe, base_files, about)
    if "fault" in found:
        raise IntegrityError(f"the export is not what was trained: {found['fault']}")
    return found


def _run(folder: Path, probe: dict[str, Tensor], base_files: Path | None, about: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "probe.safetensors"
        save_file(probe, file)
        command = [sys.executable, "-P", str(CHECK), str(folder), str(file)]
        command += [str(base_files)] if base_files else []
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise IntegrityError(f"the export cannot be loaded and run: {done.stderr.strip().splitlines()[-1]}{about}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
