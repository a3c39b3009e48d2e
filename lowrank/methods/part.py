"""The contract of a part.

A low-rank training method is a chain of parts. A part is one small class in one file of this
package; it takes its options as a strict record and offers any of the hooks below. A hook that a
part does not define is not called: the base class defines none, so nothing has to be switched off.

| hook | when | what it does |
|---|---|---|
| `check(chain, model)` | before anything is changed | refuses what cannot work, with a sentence |
| `batch_multiple()` | before anything is changed | what every batch is a multiple of, in examples |
| `attach(model, generator)` | once, in chain order | replaces or wraps targets; unfreezes what trains |
| `optimizer(named, train)` | once | builds the optimizer; at most one owner in a chain |
| `schedule(train, total_steps)` | once | returns step -> factor of lr; at most one owner |
| `begin(train, total_steps)` | once, before the first step | learns how long the run is |
| `before_step(micro_batches, step)` | before each optimizer step | sees the whole batch, cut as it will be run |
| `before_forward(batch, step)` | before each forward pass | what needs the step, the labels or the batch |
| `penalty()` | once a step, after the last micro-batch | a scalar added to the mean loss |
| `after_step(model, optimizer, step)` | after each optimizer step | merge, prune, refresh a projector |
| `eval_mode(model)` | around evaluation | a context manager: what evaluation sees |
| `merge(model)` | once, in reverse chain order | folds everything into plain modules |
| `unmerge(model)` | after `merge`, in chain order | takes it out again |
| `changed(model)` | when weights are saved | more tensors that differ from the base, by name |
| `state_dict()`, `load_state_dict(state)` | checkpoints | flat dict of tensors and JSON values |
| `stack(members, model)` | packs | acts for K members at once, whose models are one: see `stacked_chain` |

Before the first `attach` every parameter of the model is frozen, so a part only ever unfreezes.
`generator` is a CPU generator seeded from the run's seed and the part's place in the chain.
"""

from __future__ import annotations

from typing import Any, ClassVar, final

from lowrank import registry
from lowrank.spec import PartOptions
from lowrank.strict import parse


class Part:
    """Base of all parts. Subclasses set `name` and `Options`, and define the hooks they need."""

    name: ClassVar[str]
    Options: ClassVar[type[PartOptions]]
    knobs: ClassVar[dict[str, str]] = {}
    """Letter -> option: what is worth reading in a run's name, such as {"r": "rank"}."""
    varies: ClassVar[frozenset[str]] = frozenset()
    """Options in which the members of a stack may differ; for parts with the hook `stack`."""

    @final
    def __init__(self, options: Any = None, **values: Any) -> None:
        """Takes a validated options record, or the options themselves.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        self.options: Any = options if options is not None else parse(self.Options, values, self.name)
        self.setup()

    def setup(self) -> None:
        """For the state that a part keeps between hooks; called once, when it is made."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls):
            cls.Options.part = cls.name

    @final
    def __repr__(self) -> str:
        told = ", ".join(f"{key}={value!r}" for key, value in self.options.model_dump(exclude_defaults=True).items())
        return f"{self.name}({told})"


HOOKS = (
    "check",
    "batch_multiple",
    "attach",
    "optimizer",
    "schedule",
    "begin",
    "before_step",
    "before_forward",
    "penalty",
    "after_step",
    "eval_mode",
    "merge",
    "unmerge",
    "changed",
    "state_dict",
    "load_state_dict",
    "stack",
)
"""Every hook name, in the order of the table above."""


def make(options: PartOptions) -> Part:
    """The part that a validated options record belongs to."""
    return registry.part(options.part)(options)
