"""Several processes that train one run together, each with an accelerator and micro-batches of its own.

`torchrun` starts them and tells each its rank. Every process holds the whole model and sees the whole batch of a step,
so that what a part takes from it is the same everywhere; it runs its share of the micro-batches, and the gradients are
summed. From there on all do the same. The first process alone writes files, and says what is trained.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowrank.measure import ran_out
from lowrank.signals import StopFlag

Item = TypeVar("Item")

PATIENCE = datetime.timedelta(days=30)
"""How long one process waits for another, which may be scoring; one that dies ends the wait at once."""


class Ranks:
    """One process, which is all there are; the base of `ManyRanks`."""

    count, rank = 1, 0

    def mine(self, micro_batches: Sequence[Item]) -> Sequence[Item]:
        """Those of a step's micro-batches that this process runs."""
        return micro_batches

    def apart(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Around what this process does with its micro-batches alone: random draws in it are its own."""
        return contextlib.nullcontext()

    def total(self, losses: Sequence[Tensor], trainable: Sequence[nn.Parameter]) -> Tensor:
        """The sum of the losses of a step, and in `.grad` that of the gradients, over all processes.

        Args:
            losses: of the micro-batches that this process ran: () each, in a stack (K,).
            trainable: the parameters.
        """
        return torch.stack(list(losses)).detach().sum(0)

    def agreed(self, stop: StopFlag) -> StopFlag:
        """The flag that all processes read alike."""
        return stop

    def tell(self, what: Any = None) -> Any:
        """What the first process says, a JSON value, in every process."""
        return what

    def ran_out(self, error: BaseException) -> bool:
        """Whether memory ran out and every process knows it, so that all can go on with less."""
        return ran_out(error)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0


ALONE = Ranks()


class RanOut(MemoryError):
    """Memory ran out in one of the processes, in a micro-batch; every one raises this."""


class ManyRanks(Ranks):
    """One of several processes.

    Args:
        backend: `nccl` or `gloo`: moves gradients.
    """

    def __init__(self, backend: str) -> None:
        dist.init_process_group(backend, timeout=PATIENCE)
        self.count, self.rank, self.out = dist.get_world_size(), dist.get_rank(), False
        # What is decided on the CPU must not wait for the accelerator.
        self.talk = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo", timeout=PATIENCE)

    def mine(self, micro_batches: Sequence[Item]) -> Sequence[Item]:
        """Every n-th. Each stays whole, so that parts which divide it among heads find it as one process would."""
        return micro_batches[self.rank :: self.count]

    @contextlib.contextmanager
    def apart(self, device: torch.device) -> Iterator[None]:
        """Before and after, the random state is the same in all processes. Memory that runs out is told in `total`."""
        seed = int(torch.randint(2**62, ()).item())
        self.out = False
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            torch.manual_seed(seed + self.rank)
            try:
                yield
            except Exception as error:
                if not ran_out(error):
                    raise
                self.out = True

    def total(self, losses: Sequence[Tensor], trainable: Sequence[nn.Parameter]) -> Tensor:
        """All-reduced. A parameter without a gradient in every process keeps none, as optimizers tell None from 0.

        Raises:
            RanOut: memory ran out in one of the processes; all raise it.
        """
        moved = torch.tensor([self.out, *(parameter.grad is not None for parameter in trainable)], dtype=torch.uint8)
        dist.all_reduce(moved, dist.ReduceOp.MAX, group=self.talk)
        out, *there = moved.tolist()
        if out:
            raise RanOut
        none = torch.zeros((), dtype=torch.float64, device=trainable[0].device)
        found = torch.stack([none, *losses]).detach().sum(0)
        waiting = [dist.all_reduce(found, async_op=True)]
        for parameter, has_gradient in zip(trainable, there, strict=True):
            if has_gradient:
                if parameter.grad is None:  # this process had no micro-batch
                    parameter.grad = torch.zeros_like(parameter)
                waiting.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in waiting:
            work.wait()
        return found

    def agreed(self, stop: StopFlag) -> StopFlag:
        """A stop that reached any process stops all of them at the same poll; each polls equally often."""
        return _AgreedStop(stop, self.talk)

    def tell(self, what: Any = None) -> Any:
        """Broadcast from the first process, as text."""
        said = torch.tensor(list(json.dumps(what).encode()), dtype=torch.uint8)
        size = torch.tensor(len(said))
        dist.broadcast(size, src=0, group=self.talk)
        said = said if self.first else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(said, src=0, group=self.talk)
        return json.loads(bytes(said.tolist()))

    def ran_out(self, error: BaseException) -> bool:
        """Elsewhere than in a micro-batch the processes can no longer agree, and end."""
        return isinstance(error, RanOut)


class _AgreedStop(StopFlag):
    """Set where a process's own flag is set in any of them."""

    def __init__(self, own: StopFlag, group: Any) -> None:
        super().__init__()
        self.own, self.group = own, group

    def __bool__(self) -> bool:
        told = torch.tensor([bool(self.own)], dtype=torch.uint8)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.group)
        if told.item():
            self.received = self.own.received or "a signal to another process was"
        return bool(told.item())


def join(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The processes that `torchrun` started, this one among them; this one alone where it did not."""
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if torch.cuda.is_available():  # pragma: no cover - needs a GPU
        torch.cuda.set_device(int(environment["LOCAL_RANK"]))
        return ManyRanks("nccl")
    return ManyRanks("gloo")
