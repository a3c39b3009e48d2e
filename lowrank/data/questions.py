"""Prepared questions, in the form in which a harness asks them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank.data.rows import Row
from lowrank.errors import ConfigError
from lowrank.files import write_text

TOKENIZER = "tokenizer.json"
"""Lies beside the questions, so that whoever asks them needs nothing else."""


def write_questions(rows: Sequence[Row], file: Path) -> None:
    """One JSON object a line: `question`, `choices` (texts), `answer` (index) and `subject`."""
    records = [
        {"question": row.text, "choices": list(row.choices), "answer": row.label, "subject": row.subject}
        for row in rows
    ]
    write_text(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_questions(folder: Path, split: str) -> list[dict[str, Any]]:
    """What `write_questions` wrote for a split of prepared data.

    Raises:
        ConfigError: the data holds no questions.
    """
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        raise ConfigError(f"{file}: no questions; allowed here: data of a card of task 'questions'")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
