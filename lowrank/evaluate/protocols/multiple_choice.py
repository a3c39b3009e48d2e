"""Questions with four choices and worked examples in front, through lm-eval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from tokenizers import Tokenizer

from lowrank.data.questions import TOKENIZER, read_questions
from lowrank.errors import ConfigError
from lowrank.evaluate.protocol import Outcome, Protocol, Subject
from lowrank.strict import NonNegativeInt, PositiveInt, Strict

Z = 1.959964  # two-sided 95 % of a normal distribution


class MultipleChoice(Protocol):
    """The share of questions whose right letter has the highest log-likelihood after the prompt.

    accuracy = right answers / questions, which is the mean over subjects weighted by their questions

    A prompt names the subject, shows `shots` questions of it with their answers, and ends with the question. Where
    it is longer than `max_length` tokens, examples are left out from the last on. `low` and `high` bound Wilson's
    95 % interval over questions; `at_chance` is `yes` where it holds the share that guessing gets.

    Source: Hendrycks et al. 2021, "Measuring Massive Multitask Language Understanding"; its form in lm-eval.
    Departs from: lm-eval, which cuts the front of a prompt that is too long, the subject included.
    """

    name = "multiple_choice"
    metrics = ("accuracy", "low", "high", "chance", "at_chance", "questions", "subjects", "shots")
    steps = 150

    class Options(Strict):
        """What stands in front of a question."""

        shots: NonNegativeInt = 5
        """Most examples of a prompt."""
        examples: Literal["train", "same"] = "train"
        """Where they come from: the training split (MMLU's `dev`), or the other questions that are asked."""
        max_length: PositiveInt = 2048
        """Tokens of a prompt, its answer included."""

    def measure(self, subject: Subject) -> Outcome:
        """Asks the questions of the split that the evaluation names."""
        from lowrank.evaluate.harness import ChainLM, Questions, ask  # brings lm-eval

        spec, length = subject.spec, self.options.max_length
        folder = subject.batches.split.file.parent
        asked = read_questions(folder, spec.split)[: spec.rows]
        examples = asked if self.options.examples == "same" else read_questions(folder, "train")
        if not asked:
            raise ConfigError(f"{folder}: split {spec.split!r} has no questions; allowed: a split that has some")
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        with subject.chain.eval_mode() as model:
            lm = ChainLM(model, tokenizer, length - 1, spec.batch_size, subject.device, subject.poll)
            tasks = []
            for name in dict.fromkeys(question["subject"] for question in asked):
                mine = [question for question in asked if question["subject"] == name]
                shown = mine if examples is asked else [row for row in examples if row["subject"] == name]
                tasks.append(
                    Questions(name, mine, shown, self.options.shots, lambda text: len(lm.tok_encode(text)) < length)
                )
            right = ask(lm, tasks)
        shots = [count for task in tasks for count in task.shown]
        return Outcome(
            metrics={**_score(asked, right), "subjects": len(right), "shots": sum(shots) / len(shots)},
            items={"correct": [value for values in right.values() for value in values]},
            records=[
                {
                    "subject": name,
                    "questions": len(values),
                    "right": int(sum(values)),
                    "accuracy": sum(values) / len(values),
                }
                for name, values in right.items()
            ],
        )


def _score(asked: Sequence[dict[str, Any]], right: dict[str, list[float]]) -> dict[str, float | int | str]:
    from lm_eval.api.metrics import aggregate_subtask_metrics

    sizes = [len(values) for values in right.values()]
    accuracy = aggregate_subtask_metrics([sum(values) / len(values) for values in right.values()], sizes)
    chance = sum(1 / len(question["choices"]) for question in asked) / len(asked)
    low, high = wilson(accuracy, sum(sizes))
    near = "yes" if low <= chance <= high else "no"
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "chance": chance,
        "at_chance": near,
        "questions": sum(sizes),
    }


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share p over n trials.

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    middle = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return (middle - half) / (1 + Z**2 / count), (middle + half) / (1 + Z**2 / count)
