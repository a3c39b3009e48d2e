"""A method: parts in order, and the only thing the training loop talks to."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import ConfigError, IntegrityError
from lowrank.methods.part import Part, make
from lowrank.methods.rollback import undone_on_failure
from lowrank.spec import PartOptions, TrainSpec


class Chain:
    """Parts in order, attached to one model.

    Args:
        parts: the parts, in the order in which they are attached.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self.model: nn.Module | None = None
        self.seed: int | None = None
        """What `attach` was given."""
        self.merged = False
        names = [part.name for part in self.parts]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"chain {'+'.join(names)}: {name!r} stands in it twice")
        for hook in ("optimizer", "schedule"):
            owners = [part.name for part in self._with(hook)]
            if len(owners) > 1:
                raise ConfigError(f"chain {'+'.join(names)}: {' and '.join(owners)} both bring the {hook}; one may")

    @classmethod
    def build(cls, options: Sequence[PartOptions]) -> Chain:
        """From validated options records, as a RunSpec holds them."""
        return cls([make(record) for record in options])

    @property
    def name(self) -> str:
        """`nf4.lora`: as it stands in run names."""
        return ".".join(part.name for part in self.parts)

    def __contains__(self, name: str) -> bool:
        return any(part.name == name for part in self.parts)

    def __getitem__(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    def before(self, part: Part) -> list[Part]:
        """The parts that stand in front of `part`."""
        return self.parts[: self.parts.index(part)]

    def _with(self, hook: str) -> list[Any]:
        return [part for part in self.parts if hasattr(part, hook)]

    @property
    def attached(self) -> nn.Module:
        """The model that the chain is attached to; a ConfigError where there is none."""
        if self.model is None:
            raise ConfigError(f"chain {self.name}: not attached to a model yet")
        return self.model

    def check(self, model: nn.Module) -> None:
        """Asks every part whether it can work on the model, which may lie on the meta device; changes nothing.

        Raises:
            ConfigError: a part refuses.
        """
        for part in self._with("check"):
            part.check(self, model)

    def batch_multiple(self) -> int:
        """What every micro-batch is a multiple of, in examples."""
        return math.lcm(*(part.batch_multiple() for part in self._with("batch_multiple")))

    def attach(self, model: nn.Module, seed: int = 0) -> Chain:
        """Checks every part, freezes the model, then attaches the parts in order.

        Raises:
            ConfigError: already attached, or a part refuses; the model is then as it was.
        """
        held = attached_chain(model)
        if self.model is not None or (held is not None and not held.merged):
            raise ConfigError(f"chain {self.name}: the model has a chain attached already; merge it first")
        self.check(model)
        with undone_on_failure(model):
            model.requires_grad_(False)
            for index, part in enumerate(self.parts):
                if hasattr(part, "attach"):
                    part.attach(model, part_generator(seed, index))
            if not any(p.requires_grad for p in model.parameters()):
                raise ConfigError(f"chain {self.name}: nothing in {type(model).__name__} is left to train")
        self.model, self.seed = model, seed
        model._lowrank_chain = self  # type: ignore[assignment]
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name, each once."""
        return {name: p for name, p in self.attached.named_parameters() if p.requires_grad}

    def optimizer(self, train: TrainSpec) -> torch.optim.Optimizer:
        """The chain's optimizer: its owner's, or AdamW."""
        named = list(self.trainable().items())
        for part in self._with("optimizer"):
            owned: torch.optim.Optimizer = part.optimizer(named, train)
            return owned
        return torch.optim.AdamW(
            [p for _, p in named],
            lr=train.lr,
            betas=train.betas,
            eps=train.eps,
            weight_decay=train.weight_decay,
            fused=True,
        )

    def schedule(self, train: TrainSpec, total_steps: int) -> Callable[[int], float] | None:
        """Step -> factor of lr, where a part owns the schedule; the other parts learn how long the run is."""
        for part in self._with("begin"):
            part.begin(train, total_steps)
        for part in self._with("schedule"):
            owned: Callable[[int], float] = part.schedule(train, total_steps)
            return owned
        return None

    def before_step(self, micro_batches: Sequence[Mapping[str, Tensor]], step: int) -> None:
        """Shows the parts the whole batch of an optimizer step."""
        for part in self._with("before_step"):
            part.before_step(micro_batches, step)

    def before_forward(self, batch: Mapping[str, Tensor], step: int) -> None:
        """Shows the parts the batch that is run next."""
        for part in self._with("before_forward"):
            part.before_forward(batch, step)

    def penalty(self) -> Tensor | None:
        """The sum of the parts' loss terms, or None where there is none."""
        terms = [part.penalty() for part in self._with("penalty")]
        return torch.stack(terms).sum() if terms else None

    def after_step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Lets the parts act on the model after an optimizer step; `step` counts from 1."""
        for part in self._with("after_step"):
            part.after_step(self.attached, optimizer, step)

    @contextlib.contextmanager
    def eval_mode(self) -> Iterator[nn.Module]:
        """The model as evaluation sees it: eval(), without gradients."""
        model = self.attached
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), contextlib.ExitStack() as stack:
                for part in self._with("eval_mode"):
                    stack.enter_context(part.eval_mode(model))
                yield model
        finally:
            model.train(was_training)

    def merge(self) -> nn.Module:
        """Folds everything into plain modules, in reverse order.

        Raises:
            ConfigError: merged already.
        """
        model = self.attached
        if self.merged:
            raise ConfigError(f"chain {self.name}: merged already; a second merge would add the delta twice")
        with torch.no_grad():
            for part in reversed(self._with("merge")):
                part.merge(model)
        self.merged = True
        return model

    def unmerge(self) -> nn.Module:
        """Takes out again what `merge` folded in.

        Raises:
            ConfigError: not merged, or a part of the chain cannot be taken out.
        """
        model = self.attached
        if not self.merged:
            raise ConfigError(f"chain {self.name}: not merged, so there is nothing to take out")
        if attached_chain(model) is not self:
            raise ConfigError(f"chain {self.name}: another chain was attached after it was merged and has the base now")
        for part in self._with("merge"):
            if not hasattr(part, "unmerge"):
                raise ConfigError(f"chain {self.name}: {part.name} cannot be unmerged; attach it to a fresh base")
        with torch.no_grad():
            for part in self._with("unmerge"):
                part.unmerge(model)
        self.merged = False
        return model

    def changed(self) -> dict[str, Tensor]:
        """Every tensor that differs from the base card: trained, or merged into."""
        tensors: dict[str, Tensor] = {name: p.detach() for name, p in self.trainable().items()}
        for part in self._with("changed"):
            tensors |= part.changed(self.attached)
        return tensors

    @torch.no_grad()
    def load_changed(self, tensors: Mapping[str, Tensor], where: str = "weights") -> None:
        """Puts saved tensors into the attached model.

        Raises:
            IntegrityError: a tensor is missing, unknown or of another shape; nothing was changed then.
        """
        current = self.changed()
        for name in sorted(set(current) ^ set(tensors)):
            side = "not in the model" if name in tensors else "missing"
            raise IntegrityError(f"{where}: tensor {name!r} is {side} (chain {self.name})")
        for name, tensor in tensors.items():
            if current[name].shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)}, the model has {tuple(current[name].shape)}"
                raise IntegrityError(f"{where}: tensor {name!r} is {shapes}")
        for name, tensor in tensors.items():
            current[name].copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        """State that parts keep beside the weights: `<part>.<key>` -> tensor or JSON value."""
        return {f"{p.name}.{key}": value for p in self._with("state_dict") for key, value in p.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        for part in self._with("load_state_dict"):
            prefix = f"{part.name}."
            part.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def attached_chain(model: nn.Module) -> Chain | None:
    """The chain that was attached to the model last, merged or not; None for a model without one."""
    return getattr(model, "_lowrank_chain", None)


def part_generator(seed: int, index: int) -> torch.Generator:
    """A CPU generator that depends on the seed and on the part's place in the chain, on nothing else."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
