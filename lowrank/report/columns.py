"""What a column is called on a page, in which unit it is, and what it means."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lowrank.files import REPOSITORY

PROTOCOLS = REPOSITORY / "lowrank" / "evaluate" / "protocols"

HEADINGS = {
    "arm": "method",
    "lr": "learning rate",
    "alpha_over_rank": "α/r",
    "budget": "training",
    "best_lr": "best LR",
    "tied_lr": "tied LRs",
    "runner_up_lr": "runner-up LR",
    "best_lr_by_seed": "best LR by seed",
    "best_val_loss": "best validation loss",
    "last_val_loss": "last validation loss",
    "last_train_loss": "last training loss",
    "test_accuracy": "test accuracy",
    "gap": "runner-up is worse by",
    "ratio": "ratio to full",
    "ratios": "ratios within ties",
    "weight_norm_mean": "mean weight norm",
    "delta_norm_mean": "mean update norm",
    "stated_ratio": "ratio in fig. 3",
    "runs_ok": "runs finished",
    "train_time_s": "training time",
    "data_title": "data",
    "model_title": "model",
    "seeds_planned": "seeds planned",
}

DEFINITIONS = {
    "lr": "Step size of the optimizer; the peak, where a schedule moves it.",
    "rank": "Inner width r of a low-rank update B A.",
    "alpha": "The update is scaled by alpha / rank.",
    "alpha_over_rank": "What multiplies the low-rank update.",
    "budget": "main: the study's shortest training; long: any other.",
    "seed": "Decides head, adapters and the order of the data; runs of one seed share them.",
    "best_val_loss": "Lowest over training of the mean loss on the validation split, in nats per example or token.",
    "last_val_loss": "Mean loss on the validation split after the last step, in nats per example or token.",
    "last_train_loss": "Loss of the last step's batch, in nats per example or token.",
    "train_time_s": "Wall-clock seconds in training steps; start-up and evaluations are left out. Of a step that "
    "several runs take together, each has an equal share, which is less than the step would take it alone.",
    "trained_together": "Most runs that took a step together with this one, itself included; 1: it was trained alone.",
    "tokens": "Tokens that entered training, padding left out.",
    "steps": "Optimizer steps.",
    "parameters": "Values of the model with what the method adds; shared ones once, coded ones as what they stand for.",
    "base_parameters": "Values of the model alone.",
    "trainable_parameters": "Values that the optimizer changes.",
    "trainable_share": "Trainable parameters / parameters.",
    "parameter_bytes": "Memory of parameters, buffers and quantisation state.",
    "gradient_bytes": "Memory of the gradients after one backward pass.",
    "optimizer_bytes": "Memory of the optimizer's state.",
    "saved_activation_bytes": "Memory that a forward pass keeps for the backward pass, beyond the parameters.",
    "total_bytes": "Sum of parameters, gradients, optimizer state and saved activations.",
    "weight_norm_mean": "Mean over the trunk's linear layers of the Frobenius norm of weight plus update.",
    "delta_norm_mean": "Mean over the trunk's linear layers of the Frobenius norm of what training added.",
    "edge": "At which end of its grid the chosen value lies, so that the true optimum may lie beyond.",
    "tuning": "Says so where nothing was tuned.",
    "tie": "yes: another value cannot be told from the best over these seeds.",
    "seeds": "Runs that finished, one for each seed.",
    "seeds_planned": "Runs that the study asks for.",
    "status": "ok, or what became of the runs.",
    "cause": "Why a value is missing or not whole.",
    "published": "As the document prints it; ± is how far a value read from an image may be off.",
    "ours": "The same cell of our tables, with its 95 % interval over seeds where it has one.",
    "line": "Line of the document.",
    "formula": "How the value follows from the numbers beside it.",
    "agrees": "yes: the printed number is the value, rounded to the digits that are printed.",
}

_UNITS = ((r"_per_s$", "per second"), (r"_ms$", "ms"), (r"_s$", "s"), (r"(^|_)loss$", "nats"), (r"_bytes$", "bytes"))


@dataclass(frozen=True)
class Columns:
    """Names and meanings of a study's columns.

    Attributes:
        titles: arm -> its name for a reader.
        protocols: label of an evaluation -> its protocol; `<label>_<metric>` is defined by the protocol's docstring.
    """

    titles: Mapping[str, str] = field(default_factory=dict)
    protocols: Mapping[str, str] = field(default_factory=dict)

    def heading(self, column: str) -> str:
        """A column's name for a reader; a column named after an arm has its title."""
        if column.startswith("best_") and column not in HEADINGS:
            return f"best {self.heading(column.removeprefix('best_'))}"
        return HEADINGS.get(column) or self.titles.get(column) or column.replace("_", " ")

    def definition(self, column: str) -> str:
        """What a column means, with its unit; nothing for one that is not known."""
        told = DEFINITIONS.get(column, "") or self._asked(column)
        unit = next((unit for pattern, unit in _UNITS if re.search(pattern, column)), "")
        return f"{told} Unit: {unit}." if unit and unit not in told else told

    def _asked(self, column: str) -> str:
        for label, protocol in self.protocols.items():
            if column.startswith(f"{label}_"):
                told = protocol_definition(protocol, column.removeprefix(f"{label}_"))
                return f"Evaluation “{label}”: {told}" if told else ""
        return ""

    def value(self, column: str, value: Any) -> Any:
        """A value as a reader knows it: an arm by its title."""
        return self.titles.get(value, value) if column == "arm" and isinstance(value, str) else value


PLAIN = Columns()
"""Of no study."""


@functools.cache
def protocol_definition(protocol: str, metric: str) -> str:
    """The sentence of a protocol's docstring that names a metric, or its first sentence.

    The docstring is read, not the class imported: a page needs no torch.
    """
    path = PROTOCOLS / f"{protocol}.py"
    if not path.is_file():
        return ""
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    text = " ".join(next((ast.get_docstring(node) or "" for node in classes if _is_protocol(node)), "").split())
    sentences = re.split(r"(?<=\.) (?=[A-Z`])", text)
    named = [sentence for sentence in sentences if f"`{metric}`" in sentence]
    # One sentence may define several, each in a piece of its own; a piece that is a bare name shares what follows.
    pieces = [piece for sentence in named for piece in re.split(r"[,;] (?=`)", sentence) if f"`{metric}`" in piece]
    own = [piece for piece in pieces if piece.strip(" .") != f"`{metric}`"]
    return (own or named or sentences)[0].replace("`", "")


def _is_protocol(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)
