"""Cards held to what others publish: the architectures' configurations, counts of weights, facts of datasets."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest
from transformers import BertConfig, DistilBertConfig, GPT2Config, LlamaConfig, ViTConfig

from lowrank.cards import card_names, data_card, model_card
from lowrank.models.load import skeleton
from lowrank.sources import HubSource
from lowrank.spec import ModelSpec

DEFAULTS: dict[str, Any] = {
    "bert_base": BertConfig,
    "distilbert": DistilBertConfig,
    "gpt2": GPT2Config,
    "llama_7b": LlamaConfig,
    "vit_base": ViTConfig,
}
"""Model cards whose architecture is what transformers builds when it is told nothing."""

COUNTS = {
    "bert_base": ("classification", 109_482_240),
    "distilbert": ("classification", 66_362_880),
    "gpt2": ("causal_lm", 124_439_808),
    "gpt2_124m": ("causal_lm", 124_082_688),
    "llama_60m": ("causal_lm", 58_073_600),
    "llama_130m": ("causal_lm", 134_105_856),
    "llama_7b": ("causal_lm", 6_738_415_616),
    "llama_13b": ("causal_lm", 13_015_864_320),
    "llama_65b": ("causal_lm", 65_285_660_672),
    "teeny_tiny_llama": ("causal_lm", 162_417_408),
    "vit_base": ("classification", 85_798_656),
    "vit_large": ("classification", 303_301_632),
}
"""Weights as the authors and model pages state them; of classifiers without the head, which another task brings."""

VOCABULARIES = {
    "bert_base": 30_522,
    "distilbert": 30_522,
    "gpt2": 50_257,
    "gpt2_124m": 50_304,  # GPT-2's, padded to a multiple of 64
    "llama_60m": 32_100 - 100,  # T5's tokenizer, whose last 100 tokens stand for gaps
    "llama_130m": 32_100 - 100,
    "llama_7b": 32_000,
    "llama_13b": 32_000,
    "llama_65b": 32_000,
    "teeny_tiny_llama": 32_000,
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_card_is_the_architectures_own_configuration(name: str) -> None:
    published = DEFAULTS[name]().to_dict()
    told = {key: value for key, value in model_card(name).config.items() if key in published}
    assert len(told) >= 8
    # Where transformers leaves a token out, the files of the model name it.
    assert {key: value for key, value in told.items() if published[key] is not None and published[key] != value} == {}


@pytest.mark.parametrize("name", COUNTS)
def test_a_model_has_as_many_weights_as_its_authors_say(name: str) -> None:
    task, count = COUNTS[name]
    model = skeleton(ModelSpec(card=name), task, 2)
    trunk = model if task == "causal_lm" else getattr(model, model.base_model_prefix)
    assert sum(parameter.numel() for parameter in trunk.parameters()) == count


def test_every_card_of_text_models_has_the_vocabulary_of_its_tokenizer() -> None:
    cards = {name: model_card(name) for name in VOCABULARIES}
    assert {name: card.config["vocab_size"] for name, card in cards.items()} == VOCABULARIES
    assert {card.unused_tokens for name, card in cards.items() if name in ("llama_60m", "llama_130m")} == {100}


def test_every_model_of_the_hub_is_held_to_something() -> None:
    from_hub = {name for name in card_names("models") if isinstance(model_card(name).source, HubSource)}
    assert from_hub <= COUNTS.keys()


DATA: dict[str, dict[str, Any]] = {
    "ag_news": {
        "columns": ["text", "label"],
        "labels": ["World", "Sports", "Business", "Sci/Tech"],
        "rows": {"train": 120_000, "test": 7_600},
    },
    "imdb": {"columns": ["text", "label"], "labels": ["neg", "pos"], "rows": {"train": 25_000, "test": 25_000}},
    "sst2": {
        "columns": ["sentence", "label", "idx"],
        "labels": ["negative", "positive"],
        "rows": {"train": 67_349, "validation": 872},  # and 1,821 whose labels are hidden
    },
    "cnn_dailymail": {
        "columns": ["article", "highlights", "id"],
        "rows": {"train": 287_113, "validation": 13_368, "test": 11_490},
    },
    "wikitext2": {"columns": ["text"], "lines": {"train": 36_718, "validation": 3_760, "test": 4_358}},
    "wikitext2_lines": {"columns": ["text"], "lines": {"train": 36_718, "validation": 3_760, "test": 4_358}},
    # The shards that are used, of 364,868,892 documents in 1,024 and of 364,608 in 8.
    "c4": {
        "columns": ["text", "timestamp", "url"],
        "rows": {"train": 364_868_892 * 29 // 1024, "validation": 364_608 // 8},
        "about": True,
    },
}
"""Source: the `dataset_infos.json` that Hugging Face's `datasets` repository kept of each."""


@pytest.mark.parametrize("name", DATA)
def test_a_data_card_reads_columns_that_are_there(name: str) -> None:
    card, published = data_card(name), DATA[name]
    assert card.text in published["columns"]
    assert (card.label in published["columns"]) == bool(card.labels)


@pytest.mark.parametrize("name", [name for name in DATA if "labels" in DATA[name]])
def test_labels_stand_in_the_published_order(name: str) -> None:
    published = DATA[name]["labels"]
    assert len(data_card(name).labels) == len(published)
    for ours, theirs in zip(data_card(name).labels, published, strict=True):
        assert ours.startswith(theirs)


@pytest.mark.parametrize("name", DATA)
def test_a_data_card_has_the_published_splits_and_rows(name: str) -> None:
    card, published = data_card(name), DATA[name]
    assert isinstance(card.source, HubSource)
    rows = published.get("rows") or published["lines"]
    files = [PurePosixPath(file).name for file in card.source.files]
    named = {split for split in ("train", "validation", "test") if any(split in file for file in files)}
    assert named == rows.keys() == card.size.rows.keys()
    if "rows" in published:
        assert card.size.rows == rows
    if "about" not in published:
        assert all(f"{count:,}" in card.facts for count in rows.values())


def test_what_the_facts_say_of_the_others_is_what_is_counted_on() -> None:
    """Alpaca, MMLU and PathMNIST: the numbers of their authors' pages stand in the card, once for people."""
    for name in ("alpaca", "mmlu", "pathmnist_224"):
        card = data_card(name)
        assert all(f"{count:,}" in card.facts for count in card.size.rows.values()), name
