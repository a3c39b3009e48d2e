"""The worked examples of MMLU's chain-of-thought prompts as plain questions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from lowrank.data.rows import Record
from lowrank.errors import IntegrityError

LETTERS = "ABCDE"

_EXAMPLE = re.compile(
    r"(?P<question>.*)\n\(A\) ?(.*?) ?\(B\) ?(.*?) ?\(C\) ?(.*?) ?\(D\) ?(.*?)\n+A: "
    r".*The answer is \((?P<answer>[A-E])\)\.",
    re.DOTALL,
)


def examples(file: Path) -> Iterator[Record]:
    """Questions with four choices, without the reasoning that leads to the answer.

    A question whose answer is a fifth choice, which MMLU has not, is left out.

    Args:
        file: JSON, subject -> one prompt with a heading and up to five examples.

    Raises:
        IntegrityError: an example that has another form.
    """
    for subject, prompt in json.loads(file.read_text(encoding="utf-8")).items():
        for number, example in enumerate(prompt.split("\n\nQ: ")[1:], 1):
            place = f"{file.name}[{subject!r}] example {number}"
            found = _EXAMPLE.match(example)
            if found is None:
                raise IntegrityError(f"{place}: is no question with choices A to D and an answer")
            question, *choices = found.groups()[:5]
            answer = LETTERS.index(found["answer"])
            if answer < len(choices):
                yield place, {"subject": subject, "question": question, "choices": choices, "answer": answer}
