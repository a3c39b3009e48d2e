"""Builds a base model from fetched files: offline, and importing only the one class it needs."""

from __future__ import annotations

import contextlib
import gc
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lowrank.cards import ModelCard, model_card
from lowrank.data.fetch import DOWNLOADS, files_of, settings_of
from lowrank.errors import ConfigError, IntegrityError
from lowrank.methods.chain import Chain
from lowrank.recompute import checkpoint_blocks
from lowrank.spec import ModelSpec, RunSpec
from lowrank.strict import suggest
from lowrank.targets import head_names

_MODELS = "transformers.models"

CLASSES = {
    ("bert", "classification"): "BertForSequenceClassification",
    ("bert", "causal_lm"): "BertLMHeadModel",
    ("bert", "masked_lm"): "BertForMaskedLM",
    ("distilbert", "classification"): "DistilBertForSequenceClassification",
    ("distilbert", "masked_lm"): "DistilBertForMaskedLM",
    ("gpt2", "classification"): "GPT2ForSequenceClassification",
    ("gpt2", "causal_lm"): "GPT2LMHeadModel",
    ("llama", "classification"): "LlamaForSequenceClassification",
    ("llama", "causal_lm"): "LlamaForCausalLM",
    ("vit", "classification"): "ViTForImageClassification",
}
"""Imported straight from `transformers.models.<type>.modeling_<type>`; others are found through its auto classes."""

_AUTO_MAPPINGS = {
    "classification": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"),
    "causal_lm": ("MODEL_FOR_CAUSAL_LM_MAPPING",),
    "masked_lm": ("MODEL_FOR_MASKED_LM_MAPPING",),
}


def load_model(spec: ModelSpec, task: str, num_labels: int, seed: int, downloads: Path = DOWNLOADS) -> nn.Module:
    """The base model of a run, in evaluation mode, on the CPU.

    The head, and every weight where the card's init is random, is drawn from `seed`; the global random
    state is left as it was. A classifier that the files hold is not used, since it belongs to another task; what
    stands between a trunk and its vocabulary comes from the files where they hold it.

    Args:
        spec: which card, how many layers, which dropout and dtype.
        task: `classification`, `causal_lm` or `masked_lm`.
        num_labels: classes of the head, for classification.
        seed: the run's seed.
        downloads: where `fetch` put the cards.

    Raises:
        ConfigError: an architecture or a number of layers that is not there.
        IntegrityError: files that are not what the card says, or trunk tensors missing or left over.
        UnavailableError: the card is not fetched.
    """
    card = model_card(spec.card)
    folder = files_of(card, downloads)
    settings = _settings(card, folder)
    with _seeded(seed):
        if card.init == "random":
            model = _build(card, settings, spec, task, num_labels)
            return model.to(getattr(torch, spec.dtype)).eval()
        return _load(card, settings, spec, task, num_labels, folder).eval()


def load_run(
    spec: RunSpec, num_labels: int, device: torch.device | None = None, downloads: Path = DOWNLOADS
) -> tuple[nn.Module, Chain]:
    """The base model of a run with its chain attached, as before its first step. Raises what `load_model` does."""
    model = load_model(spec.model, spec.task, num_labels, spec.seed, downloads).to(device)
    return model, Chain.build(spec.chain).attach(model, spec.seed)


def skeleton(spec: ModelSpec, task: str, num_labels: int) -> nn.Module:
    """The model without numbers, on the meta device: names, shapes and sizes from the card alone.

    Nothing needs to be fetched. For counting parameters and bytes of models of any size.
    """
    card = model_card(spec.card)
    with torch.device("meta"):
        return _build(card, dict(card.config), spec, task, num_labels).to(getattr(torch, spec.dtype))


def _build(card: ModelCard, settings: dict[str, Any], spec: ModelSpec, task: str, num_labels: int) -> nn.Module:
    model_class = _class(card, str(settings.get("model_type")), task)
    model: nn.Module = model_class(_config(model_class, card, settings, spec, task, num_labels))
    if spec.gradient_checkpointing:
        checkpoint_blocks(model)
    return model


def _class(card: ModelCard, model_type: str, task: str) -> Any:
    if (model_type, task) in CLASSES:
        name = f"{_MODELS}.{model_type}.modeling_{model_type}"
        if name not in sys.modules:
            importlib.import_module(name)
            gc.freeze()  # a million objects that stay to the end: no collection need look at them again
        return getattr(sys.modules[name], CLASSES[model_type, task])
    from transformers.models.auto import configuration_auto, modeling_auto

    if model_type not in configuration_auto.CONFIG_MAPPING:
        raise ConfigError(
            f"model card {card.name!r}: unknown model_type {model_type!r}"
            f"{suggest(model_type, {known for known, _ in CLASSES})} and the architectures of transformers"
        )
    config_class = configuration_auto.CONFIG_MAPPING[model_type]
    for mapping in _AUTO_MAPPINGS[task]:
        if config_class in getattr(modeling_auto, mapping):
            return getattr(modeling_auto, mapping)[config_class]
    raise ConfigError(f"model card {card.name!r}: architecture {model_type!r} has no class for task {task!r}")


def _config(
    model_class: Any, card: ModelCard, settings: dict[str, Any], spec: ModelSpec, task: str, num_labels: int
) -> Any:
    config = model_class.config_class.from_dict(settings)
    config._attn_implementation = "sdpa"
    if task == "classification":
        config.num_labels = spec.head_classes or num_labels
        if config.num_labels < num_labels:
            raise ConfigError(
                f"model card {card.name!r}: head_classes is {spec.head_classes}; "
                f"allowed: {num_labels} or more, the labels of the data"
            )
        config.problem_type = "single_label_classification"
    elif task == "causal_lm":
        config.is_decoder = True  # BERT attends to both sides unless told
        config.use_cache = False
    if spec.layers is not None:
        if spec.layers > config.num_hidden_layers:
            raise ConfigError(
                f"model card {card.name!r}: layers is {spec.layers}; allowed: up to {config.num_hidden_layers}"
            )
        config.num_hidden_layers = spec.layers
    if spec.dropout is not None:
        for name, value in config.to_dict().items():
            if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float | int):
                setattr(config, name, spec.dropout)
    return config


def _load(
    card: ModelCard, settings: dict[str, Any], spec: ModelSpec, task: str, num_labels: int, folder: Path
) -> nn.Module:
    with torch.device("meta"):
        shapes = _build(card, settings, spec, task, num_labels)
    heads = tuple(f"{name}." for name in head_names(shapes))
    tensors = _tensors(folder)
    if task == "classification":  # a language model's head comes with the base
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}
    with _quiet():
        model, found = type(shapes).from_pretrained(  # type: ignore[attr-defined]
            None,
            config=shapes.config,
            state_dict=tensors,
            dtype=getattr(torch, spec.dtype),
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # refused below, with the name of the tensor
            output_loading_info=True,
        )
    _refuse(card, folder, "has shapes other than the model's", [name for name, *_ in found["mismatched_keys"]])
    prefix, trunk = model.base_model_prefix, getattr(model, model.base_model_prefix)
    missing = [name for name in found["missing_keys"] if not name.startswith(heads)]
    # A vocabulary's bias, which a trunk without a head does not bring, starts at zero.
    missing = [name for name in missing if name.startswith(f"{prefix}.") or not name.endswith(".bias")]
    _refuse(card, folder, "misses", missing)
    over = [name for name in found["unexpected_keys"] if _is_trunk(name, prefix, trunk)]
    _refuse(card, folder, "holds unknown", [name for name in over if not _is_cut_layer(name, spec)])
    built: nn.Module = model
    if spec.gradient_checkpointing:
        checkpoint_blocks(built)
    return built


def _tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise IntegrityError(f"{folder}: no .safetensors file, which a pretrained model needs")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise IntegrityError(f"{file}: not readable ({error})") from None
    return tensors


def _refuse(card: ModelCard, folder: Path, fault: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise IntegrityError(f"model card {card.name!r}: {folder} {fault} trunk tensors: {shown}")


def _is_trunk(name: str, prefix: str, trunk: nn.Module) -> bool:
    """Whether a tensor of the file belongs to the trunk, not to a head of another task."""
    return name.startswith(f"{prefix}.") or name.split(".")[0] in dict(trunk.named_children())


def _is_cut_layer(name: str, spec: ModelSpec) -> bool:
    number = re.search(r"\.(\d+)\.", name)
    return spec.layers is not None and number is not None and int(number[1]) >= spec.layers


def _settings(card: ModelCard, folder: Path) -> dict[str, Any]:
    """The model's configuration, checked against the card."""
    settings = settings_of(card, folder)
    for name, expected in card.config.items():
        if settings.get(name) != expected:
            raise IntegrityError(
                f"model card {card.name!r}: config.json says {name} is {settings.get(name)!r}, the card {expected!r}"
            )
    return settings


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws on the CPU come from `seed` inside, and go on as before after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every accelerator too
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars or loading reports: `_refuse` says what matters."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
