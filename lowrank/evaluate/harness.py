"""The harness of lm-eval over a model of ours and questions of a card: no network, no tokenizer of a library's own.

Imported only where questions are asked, since it brings the harness with it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import yaml
from lm_eval import evaluator, utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from lowrank.tasks import forward

# The harness compiles a template anew for each of thousands of uses; there are a few dozen.
utils.env.from_string = functools.lru_cache(maxsize=256)(utils.env.from_string)

Question = Mapping[str, Any]
"""`question`, `choices` (four texts), `answer` (0 to 3), `subject`."""

TEMPLATE = "tasks/mmlu/default/_default_template_yaml"
"""Where the harness says how MMLU is asked."""


class ChainLM(TemplateLM):  # type: ignore[misc]
    """A model as the harness sees it: log-likelihoods of continuations.

    Args:
        model: in evaluation mode.
        tokenizer: the one it was trained with.
        max_length: tokens that the model may see; older ones are left out.
        batch_size: rows of a forward pass.
        device: where the model lies.
        poll: called before each forward pass; it raises where scoring must stop.
    """

    backend = "causal"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        max_length: int,
        batch_size: int,
        device: torch.device,
        poll: Callable[[], None],
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        self.batch_size, self.poll, self._device = batch_size, poll, device
        self._encoded: dict[str, list[int]] = {}  # the harness asks for a prompt once for each answer

    @property
    def eot_token_id(self) -> int:
        """Stands in front of an empty context."""
        raise AssertionError("a question has a context")

    def tok_encode(self, string: str, **_: Any) -> list[int]:
        """The token ids of a text, with the tokens that begin a text and without those that end one."""
        if string not in self._encoded:
            encoding = self.tokenizer.encode(string)
            # A tokenizer such as T5's closes each text, which would stand between a question and its answer.
            closed = bool(encoding.ids) and encoding.special_tokens_mask[-1] == 1
            self._encoded[string] = encoding.ids[:-1] if closed else encoding.ids
        return self._encoded[string]

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        """log p(continuation | context) and whether it is the greedy one, for each ((texts), context, continuation).

        Requests that show the model the same tokens, as the four letters of one question do, share a row.
        """
        rows = [tuple((context + wanted)[-(self.max_length + 1) :][:-1]) for _, context, wanted in requests]
        distinct = sorted(set(rows), key=lambda row: (len(row), row))
        found: dict[tuple[int, ...], Tensor] = {}
        longest = max((len(wanted) for *_, wanted in requests), default=0)
        for start in range(0, len(distinct), self.batch_size):
            self.poll()
            chunk = distinct[start : start + self.batch_size]
            width = len(chunk[-1])
            batch = {
                "input_ids": torch.tensor([[*row, *[0] * (width - len(row))] for row in chunk]),
                "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in chunk]),
            }
            logits = forward(self.model, {key: value.to(self._device) for key, value in batch.items()})
            for row, scores in zip(chunk, logits, strict=True):
                tail = scores[max(0, len(row) - longest) : len(row)]
                found[row] = functional.log_softmax(tail.float(), -1).cpu()  # (longest at most, vocabulary)
        answers = []
        for row, (_, _, wanted) in zip(rows, requests, strict=True):
            tail, ids = found[row][-len(wanted) :], torch.tensor(wanted[-len(row) :])
            value = tail.gather(-1, ids[:, None]).sum().item()
            answers.append((value, bool((tail.argmax(-1) == ids).all())))
        return answers

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """For tasks of other kinds."""
        raise AssertionError("a question is answered by the likelihood of its choices")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """For tasks of other kinds."""
        raise AssertionError("a question is answered by the likelihood of its choices")


class Questions(ConfigurableTask):  # type: ignore[misc]
    """The questions of one subject, asked as the harness asks MMLU's; examples that do not fit are left out.

    Args:
        subject: as the prompt spells it, with underscores for spaces.
        asked: the questions.
        examples: questions with answers to show first; the asked ones themselves where they are the same list.
        shots: most examples of a prompt.
        fits: whether a prompt is short enough.
    """

    def __init__(
        self,
        subject: str,
        asked: Sequence[Question],
        examples: Sequence[Question],
        shots: int,
        fits: Callable[[str], bool],
    ) -> None:
        from datasets import Dataset

        template = yaml.safe_load(importlib.resources.files("lm_eval").joinpath(TEMPLATE).read_text(encoding="utf-8"))
        splits = {"test": Dataset.from_list([dict(row) for row in asked])}
        if examples is not asked:
            splits["dev"] = Dataset.from_list([dict(row) for row in examples])
        del template["dataset_path"]
        template |= {
            "task": subject,
            "description": f"The following are multiple choice questions (with answers) about "
            f"{subject.replace('_', ' ')}.\n\n",
            "custom_dataset": lambda **_: splits,
            "num_fewshot": shots,
            "fewshot_split": "test" if examples is asked else "dev",
        }
        self.fits = fits
        self.shown: list[int] = []
        """How many examples each question had in front of it."""
        self._pool = examples
        self._texts: dict[tuple[str, ...], str] = {}  # the harness compiles its template anew for each use
        with _quiet():
            super().__init__(config=template)

    def doc_to_text(self, doc: dict[str, Any], doc_to_text: Any = None) -> str:
        """A question with its choices, up to the word that its answer follows."""
        key = (doc["question"], *doc["choices"])
        if key not in self._texts:
            self._texts[key] = super().doc_to_text(doc, doc_to_text)
        return self._texts[key]

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, *args: Any, **kwargs: Any) -> str:
        """The prompt with as many examples as fit, from the first on; never the question itself, nor its double."""
        others = sum(dict(row) != doc for row in self._pool)
        for shots in range(min(num_fewshot, others), -1, -1):
            prompt: str = super().fewshot_context(doc, shots, *args, **kwargs)
            if shots == 0 or self.fits(prompt):
                self.shown.append(shots)
                return prompt
        raise AssertionError("range(..., -1, -1) ends with 0")


def ask(model: ChainLM, tasks: Sequence[Questions]) -> dict[str, list[float]]:
    """Subject -> correctness (1.0 or 0.0) of each of its questions, in their order.

    A question is answered by the letter A to D of the highest log-likelihood after the prompt.
    """
    with _quiet():
        found = evaluator.evaluate(model, {task.config.task: task for task in tasks}, bootstrap_iters=0)
    return {
        name: [float(sample["acc"]) for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for name, samples in found["samples"].items()
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's remarks, and its progress bars for each subject and step, which have no other switch."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
