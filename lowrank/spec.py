"""What a run is: its question as a frozen record, and the name that follows from it.

Two runs with the same `run_id` ask the same question, so the second is never trained. The id is
legible and content-addressed: chain, main knobs, seed, and 8 hex digits of the SHA-256 over the
canonical JSON of the resolved spec. Values are cast to their declared types and fields equal to
their defaults are left out, so a new field with a default keeps every old id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, SerializeAsAny, model_validator

from lowrank import registry
from lowrank.files import canonical_json
from lowrank.strict import (
    Fraction,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Strict,
)

SPEC_VERSION = 1
"""Raised when a default changes meaning; a golden test of all defaults forces it up."""

HASH_DIGITS = 8


class PartOptions(Strict):
    """What a part of a chain can be told. Each part subclasses it; `part` is the part's name."""

    part: ClassVar[str]


class ModelSpec(Strict):
    """The base model and how it is cut and held."""

    card: Name
    layers: PositiveInt | None = None
    """Keep the first k transformer layers; None keeps all."""
    head_classes: PositiveInt | None = None
    """Outputs of a classification head; None: one for each label. More than that is what scripts get that keep the
    head of another task, such as 1000 for ImageNet's."""
    dropout: Fraction | None = None
    """Overrides every dropout probability of the base; None keeps the card's."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """In which the base weights are held."""
    gradient_checkpointing: bool = False
    """Each block keeps its inputs alone and is computed again in the backward pass: less memory, a third more work, the
    same numbers."""


class DataSpec(Strict):
    """The examples: which, how many, and how they become tensors."""

    card: Name
    max_length: PositiveInt = 128
    """Tokens an example is cut at."""
    pad: Literal["longest", "max_length"] = "longest"
    """`max_length` pads every example to the limit, as many published scripts do."""
    concatenate: bool = True
    """Text only: documents end to end, cut into rows of `max_length`. False makes each document a row, cut at
    `max_length`, as many published scripts do."""
    sample: Literal["rows", "blocks"] = "rows"
    """What a training batch is made of: the rows, each once an epoch, or blocks of `max_length` tokens that begin
    anywhere in the training text, drawn anew in each step, as nanoGPT does. Evaluation always goes through the rows."""
    image_size: PositiveInt | None = None
    """Height and width that images are resized to; None keeps the card's."""
    split_seed: NonNegativeInt = 0
    validation_fraction: Fraction = 0.1
    """Carved from the training split where the card has no validation split."""
    test_fraction: Fraction = 0.2
    """Carved off first, where the card has no test split."""
    train_rows: PositiveInt | None = None
    validation_rows: PositiveInt | None = None
    test_rows: PositiveInt | None = None
    """The first rows kept of each split, after shuffling; None keeps all."""
    mask_fraction: Fraction = 0.15
    """masked_lm: share of the tokens that are hidden and predicted; 0 hides none and predicts every position, padding
    included, from itself, as the comparison document's script does."""
    train_on_inputs: bool = True
    """Instructions: prompts are predicted too; False leaves the responses alone to be learned."""
    group_by_length: bool = False
    """Training batches of rows of similar length, drawn anew in each epoch, so that little is padded."""


def _told(observers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Options in one form: checked, and left out where they are the observer's defaults."""
    return {
        name: registry.parse_observer(name, options).model_dump(mode="json", exclude_defaults=True)
        for name, options in observers.items()
    }


class TrainSpec(Strict):
    """Everything the loop needs to know that is not the method."""

    lr: PositiveFloat
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["constant", "linear", "cosine", "jagged_cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    min_lr_fraction: Fraction = 0.0
    """Where linear and cosine end, as a fraction of lr."""
    cycle_steps: PositiveInt | None = None
    """jagged_cosine: the learning rate drops to 0 and warms up again every so many steps."""
    epochs: PositiveInt | None = None
    steps: NonNegativeInt | None = None
    """Exactly one of epochs and steps; 0 steps is the untouched base."""
    batch_size: PositiveInt = 32
    """Examples per optimizer step."""
    micro_batch_size: PositiveInt | None = None
    """Examples per forward pass; None is the whole batch. It changes memory, never the answer."""
    clip_norm: PositiveFloat | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the forward pass under autocast."""
    eval_every: Literal["epoch"] | PositiveInt = "epoch"
    """Validation after each epoch, or every so many steps; always after the last step."""
    select: Literal["last", "best"] = "last"
    """Which weights the run is judged by: the last, or those of the lowest validation loss."""
    observe: Annotated[dict[Name, dict[str, Any]], AfterValidator(_told)] = {}
    """Observers of `lowrank.train.observers`, each with what it is told; they record rows and change no number."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainSpec:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"give exactly one of epochs and steps, found epochs={self.epochs!r} and steps={self.steps!r}"
            )
        if self.schedule == "jagged_cosine" and self.cycle_steps is None:
            raise ValueError("schedule 'jagged_cosine' needs cycle_steps")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} is larger than batch_size {self.batch_size}")
        return self


ChainOptions = Annotated[tuple[SerializeAsAny[PartOptions], ...], BeforeValidator(registry.parse_chain)]


class RunSpec(Strict):
    """One training run. Frozen, typed, strict."""

    task: Literal["classification", "causal_lm", "masked_lm"]
    model: ModelSpec
    data: DataSpec
    chain: ChainOptions
    train: TrainSpec
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _blocks_of_text(self) -> RunSpec:
        if self.data.sample == "blocks" and self.task == "classification":
            raise ValueError("data.sample 'blocks' cuts a text anywhere; allowed with task 'classification': rows")
        if self.data.sample == "blocks" and not self.data.concatenate:
            raise ValueError("data.sample 'blocks' cuts documents that stand end to end; allowed: concatenate true")
        return self

    def dump(self) -> dict[str, Any]:
        """The spec as plain JSON values, fields equal to their defaults left out."""
        plain = self.model_dump(mode="json", exclude_defaults=True, exclude={"chain"})
        chain = [{"part": o.part, **o.model_dump(mode="json", exclude_defaults=True)} for o in self.chain]
        return {**plain, "chain": chain}


class EvalSpec(Strict):
    """What is asked of a trained run. It has its own id and never enters the run's hash."""

    protocol: Name = "score"
    """Which protocol of `lowrank.evaluate.protocols`."""
    options: dict[str, Any] = {}
    """What the protocol is told, where that is not its default."""
    split: Literal["train", "validation", "test"] = "test"
    batch_size: PositiveInt = 64
    rows: PositiveInt | None = None
    merged: bool = False
    """Score the plain model with everything folded in, instead of base plus adapters."""
    data: DataSpec | None = None
    """Score on other data than the run was trained on."""

    @model_validator(mode="before")
    @classmethod
    def _options_fit(cls, value: Any) -> Any:
        """Options in one form: checked, and left out where they are the protocol's defaults."""
        if not isinstance(value, Mapping) or not isinstance(value.get("options", {}), Mapping):
            return value
        options = registry.parse_protocol(value.get("protocol", "score"), value.get("options", {}))
        return {**value, "options": options.model_dump(mode="json", exclude_defaults=True)}


Pins = Mapping[str, str]
"""Card name -> revision or SHA-256 of what it resolves to."""


def run_id(spec: RunSpec, pins: Pins) -> str:
    """`lora-r8-a32-lr3e-4-s0-719a64fd`: chain, main knobs, seed, hash.

    Args:
        spec: the run.
        pins: identity of each card the run uses, so that moved data is another run.
    """
    knobs = [f"{letter}{spell(getattr(options, field))}" for options in spec.chain for letter, field in _knobs(options)]
    chain = ".".join(options.part for options in spec.chain)
    return "-".join([chain, *knobs, f"lr{spell(spec.train.lr)}", f"s{spec.seed}", _digest(identity(spec, pins))])


def identity(spec: RunSpec, pins: Pins) -> dict[str, Any]:
    """What the hash is taken of, and what `spec.json` holds."""
    return {"version": SPEC_VERSION, "spec": spec.dump(), "pins": dict(sorted(pins.items()))}


def eval_id(spec: EvalSpec, pins: Pins) -> str:
    """`test-1f0c22ab`: the split and 8 hex digits over the canonical JSON of the evaluation."""
    plain = spec.model_dump(mode="json", exclude_defaults=True)
    return f"{spec.split}-{_digest({'version': SPEC_VERSION, 'spec': plain, 'pins': dict(sorted(pins.items()))})}"


def data_id(spec: DataSpec, pins: Pins) -> str:
    """Names prepared data: the card and 8 hex digits over spec, data and tokenizer."""
    batching = {"pad", "sample", "mask_fraction", "image_size", "train_on_inputs", "group_by_length"}
    plain = spec.model_dump(mode="json", exclude_defaults=True, exclude=batching)
    return f"{spec.card}-{_digest({'version': SPEC_VERSION, 'spec': plain, 'pins': dict(sorted(pins.items()))})}"


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:HASH_DIGITS]


def _knobs(options: PartOptions) -> list[tuple[str, str]]:
    return list(registry.part(options.part).knobs.items())


def spell(value: object) -> str:
    """A number as people write it in a file name: 16.0 -> 16, 0.0003 -> 3e-4, 1500.0 -> 1500."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return str(int(value))
    if 0.1 <= abs(value) < 1e6:
        return f"{value:.12g}"
    mantissa, exponent = f"{value:.11e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
