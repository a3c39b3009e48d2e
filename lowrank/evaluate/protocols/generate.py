"""Greedy continuations of a split's rows by a causal language model."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lowrank.cards import model_card, tokenizer_card
from lowrank.data.fetch import files_of
from lowrank.errors import ConfigError
from lowrank.evaluate.clock import clock, seconds
from lowrank.evaluate.protocol import Outcome, Protocol, Subject
from lowrank.strict import PositiveInt, Strict
from lowrank.tasks import forward


class Generate(Protocol):
    """The likeliest next token, again and again: x_t = argmax p(x | x_<t).

    Each step runs the model over the whole prefix, without a cache. `tokens_per_s`: new tokens of all prompts a
    second (see `clock`, as in `cost`). `repeated_share`: new tokens that equal the one before them, which shows a
    model that is stuck. `agreement`: share of new tokens that are the text's own. Records: `sample`, `prompt`,
    `continuation`, `text` (how the text really goes on). A run of another task has no numbers.
    """

    name = "generate"
    metrics = ("tokens_per_s", "new_tokens", "repeated_share", "agreement", "clock")

    class Options(Strict):
        """How many prompts, and how long."""

        samples: PositiveInt = 4
        """The first so many rows that are long enough."""
        prompt_tokens: PositiveInt = 8
        new_tokens: PositiveInt = 16

    def measure(self, subject: Subject) -> Outcome:
        """Continues the first rows of the split.

        Raises:
            ConfigError: no row is long enough.
        """
        if subject.run.task != "causal_lm":
            return Outcome(metrics=dict.fromkeys(self.metrics))
        ids = self._rows(subject)
        cut, new, found = self.options.prompt_tokens, self.options.new_tokens, ids
        with subject.chain.eval_mode() as model:

            def decode() -> None:
                nonlocal found
                found = ids[:, :cut]
                for _ in range(new):
                    subject.poll()
                    logits = forward(model, {"input_ids": found, "attention_mask": torch.ones_like(found)})
                    found = torch.cat([found, logits[:, -1:].argmax(-1)], dim=1)

            took = seconds(decode, subject.device, 1, subject.poll)
        made, own = found[:, cut:], ids[:, cut:]
        tokenizer = _tokenizer(subject.run.model.card)
        texts = [[tokenizer.decode(row.tolist()) for row in part] for part in (ids[:, :cut], made, own)]
        records = [
            {"sample": index, "prompt": prompt, "continuation": continuation, "text": text}
            for index, (prompt, continuation, text) in enumerate(zip(*texts, strict=True), 1)
        ]
        return Outcome(
            metrics={
                "tokens_per_s": made.numel() / took,
                "new_tokens": made.numel(),
                "repeated_share": (found[:, cut:] == found[:, cut - 1 : -1]).double().mean().item(),
                "agreement": (made == own).double().mean().item(),
                "clock": clock(subject.device),
            },
            records=records,
        )

    def _rows(self, subject: Subject) -> Tensor:
        """(samples, prompt_tokens + new_tokens) int64."""
        length = self.options.prompt_tokens + self.options.new_tokens
        lengths = subject.batches.split.lengths
        rows = (lengths >= length).nonzero().flatten()[: self.options.samples]
        if not len(rows):
            raise ConfigError(
                f"protocol generate: prompt_tokens {self.options.prompt_tokens} and new_tokens "
                f"{self.options.new_tokens} make {length}, the longest row of the split has {int(lengths.max())}; "
                "allowed: no more together than a row has"
            )
        (batch,) = subject.batches.micro_batches(rows, len(rows))
        return batch["input_ids"][:, :length].to(subject.device)


def _tokenizer(card: str) -> Tokenizer:
    file = files_of(tokenizer_card(model_card(card))) / "tokenizer.json"
    return Tokenizer.from_file(str(file))
