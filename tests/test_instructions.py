"""Instructions: templates make rows, prompts can be left out of the loss, rows of one article stay together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from lowrank.cards import data_card
from lowrank.data.batches import by_length_within, order
from lowrank.data.loader import open_splits
from lowrank.data.prompts import instructions
from lowrank.errors import ConfigError
from lowrank.files import check_seal
from lowrank.spec import DataSpec
from lowrank.tasks import IGNORED, task
from tests.card_files import WORDS, PreparedFiles

CARD = {
    "task": "instructions",
    "labels": [],
    "group": "title",
    "templates": [
        {"prompt": "{title} w1 ", "response": "{text}"},
        {"prompt": "{title} {hint} w2 ", "response": "{text}"},
    ],
}
ROWS = [{"title": WORDS[i % 15], "text": f"{WORDS[i]} {WORDS[i]}", "hint": ""} for i in range(30)]


def words(special: tuple[str, ...] = ("[PAD]", "[UNK]", "</s>")) -> str:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return str(tokenizer.to_str())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedFiles:
    return PreparedFiles(tmp_path, monkeypatch)


def prepare(bench: PreparedFiles, rows: list[dict[str, Any]] = ROWS, card: Any = CARD, **options: Any) -> Path:
    return bench.prepare(rows, words(), card=card, **options)


def test_a_row_is_prompt_response_and_end(bench: PreparedFiles) -> None:
    folder = prepare(bench)
    split = open_splits(folder, DataSpec(card="rows", max_length=8), "causal_lm")["train"].split
    title, one, first, second, end = split.tokens[:5].tolist()
    assert (one, first, end) == (4, second, 2)  # w1, the response, </s>
    assert split.prompts is not None
    assert set(split.prompts.tolist()) == {2}
    assert title == 3 + (first - 3) % 15


@pytest.mark.parametrize("trained", [True, False])
def test_prompts_are_predicted_or_not(bench: PreparedFiles, trained: bool) -> None:
    spec = DataSpec(card="rows", max_length=8, train_on_inputs=trained)
    (batch,) = open_splits(prepare(bench), spec, "causal_lm")["train"].micro_batches(torch.arange(4), 4)
    assert (batch["labels"][:, :2] == IGNORED).all().item() == (not trained)
    assert (batch["labels"][:, 2:] == batch["input_ids"][:, 2:]).all()
    assert task("causal_lm").units(batch) == 4 * (4 if trained else 3)


def test_what_is_cut_is_counted(bench: PreparedFiles) -> None:
    facts = check_seal(prepare(bench, max_length=2))["splits"]["train"]
    assert facts["cut_rows"] == facts["rows"] == facts["rows_without_response"]


def test_rows_of_one_group_stay_in_one_split(bench: PreparedFiles) -> None:
    splits = open_splits(prepare(bench, card={**CARD, "use": "each"}), DataSpec(card="rows", max_length=8), "causal_lm")
    titles = [{split.split.tokens[start].item() for start in split.split.offsets[:-1]} for split in splits.values()]
    assert all(titles)
    assert not titles[0] & titles[1] | titles[1] & titles[2] | titles[0] & titles[2]


@pytest.mark.parametrize(
    ("use", "record", "prompts"),
    [
        ("first", {"title": "w3", "hint": "w4", "text": ""}, ["w3 w1 "]),
        ("first", {"title": "", "hint": "w4", "text": "w5"}, []),
        ("each", {"title": "w3", "hint": "w4", "text": "w5"}, ["w3 w1 ", "w3 w4 w2 "]),
        ("each", {"title": "w3", "hint": " ", "text": "w5"}, ["w3 w1 "]),
        ("each", {"title": "w3", "hint": "w4", "text": None}, []),
    ],
)
def test_which_templates_make_a_row(bench: PreparedFiles, use: str, record: dict[str, Any], prompts: list[str]) -> None:
    bench.data("rows", ROWS, **CARD, use=use)  # type: ignore[arg-type]
    assert [row.prompt for row in instructions(data_card("rows"), "here", record)] == prompts


def test_a_template_names_fields_that_exist(bench: PreparedFiles) -> None:
    card = {**CARD, "templates": [{"prompt": "{titel}", "response": "{text}"}]}
    with pytest.raises(ConfigError, match="template names 'titel'; did you mean 'title'"):
        prepare(bench, card=card)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templates": []}, "task 'instructions', which needs at least one"),
        ({"task": "text"}, "belong to task 'instructions'"),
        ({"labels": ["a", "b"]}, "task 'instructions' has none"),
    ],
)
def test_faulty_cards_are_refused(bench: PreparedFiles, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench.data("rows", ROWS, **{**CARD, **change})  # type: ignore[arg-type]


def test_other_cards_keep_their_identity() -> None:
    """The digits that stood in ids before cards had templates."""
    assert data_card("ag_news").pin.endswith(f"-{AG_NEWS}")


AG_NEWS = "b09ea3a5"


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 3))
def test_grouping_by_length_moves_rows_within_windows_only(lengths: list[int], window: int, epoch: int) -> None:
    plain, sizes = order(len(lengths), 7, epoch), torch.tensor(lengths)
    grouped = by_length_within(plain, sizes, window)
    for old, new in zip(plain.split(window), grouped.split(window), strict=True):
        assert sorted(old.tolist()) == sorted(new.tolist())
        assert sizes[new].tolist() == sorted(sizes[old].tolist(), reverse=True)


def test_batches_grouped_by_length_pad_less(bench: PreparedFiles) -> None:
    rows = [{**row, "text": f"{row['text']} " * (1 + i % 3)} for i, row in enumerate(ROWS)]
    folder = prepare(bench, rows)
    padding = {}
    for grouped in (False, True):
        spec = DataSpec(card="rows", max_length=8, group_by_length=grouped)
        batches = open_splits(folder, spec, "causal_lm")["train"]
        seen = [batch for step in range(5) for batch in batches.training_batch(3, step, 4, 4)]
        padding[grouped] = sum(int((batch["attention_mask"] == 0).sum()) for batch in seen)
        assert sum(len(batch["labels"]) for batch in seen) == 20
    assert padding[True] < padding[False]
