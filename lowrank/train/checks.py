"""What can be refused of batches before a run starts."""

from __future__ import annotations

from lowrank.errors import ConfigError
from lowrank.methods.chain import Chain
from lowrank.spec import TrainSpec


def check_batches(chain: Chain, train: TrainSpec, rows: int | None) -> None:
    """Refuses batches that the chain cannot share out, the last one of an epoch included.

    Args:
        chain: says what a batch is a multiple of.
        train: sizes of batches, length of the run.
        rows: examples of the training split; None where that is not known yet.

    Raises:
        ConfigError: a size that is no multiple; names it and what is allowed.
    """
    multiple = chain.batch_multiple()
    sizes = {f"batch_size {train.batch_size}": train.batch_size}
    if train.micro_batch_size is not None:
        sizes[f"micro_batch_size {train.micro_batch_size}"] = train.micro_batch_size
    if rows is not None and (train.steps is None or train.steps * train.batch_size > rows):
        last = rows % train.batch_size
        sizes[f"the last batch of an epoch, {last} of {rows} rows at batch_size {train.batch_size},"] = last
    for what, size in sizes.items():
        if size % multiple:
            raise ConfigError(
                f"chain {chain.name}: {what} is no multiple of {multiple}; allowed: multiples of {multiple}"
            )
