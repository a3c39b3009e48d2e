"""What can be refused before a run starts: a chain that cannot work on a model or share out its batches."""

from __future__ import annotations

import functools

from lowrank.cards import DataCard, ModelCard
from lowrank.errors import ConfigError
from lowrank.files import canonical_json
from lowrank.images import check_fit
from lowrank.methods.chain import Chain
from lowrank.models.load import skeleton
from lowrank.spec import RunSpec, TrainSpec


class Checks:
    """Asks whether runs can work, without a single number of their models; the same question once."""

    def __init__(self) -> None:
        self._skeleton = functools.cache(skeleton)
        self._asked: set[str] = set()

    def check(self, spec: RunSpec, model: ModelCard, data: DataCard) -> None:
        """Refuses a run that cannot work.

        Args:
            spec: the run.
            model: the card it names.
            data: the same.

        Raises:
            ConfigError: names the value, the layer or batch that it does not fit, and what is allowed.
        """
        labels = len(data.labels)
        check_fit(data.image, data.name, spec.data.image_size, model.name, model.config, spec.task)
        chain = Chain.build(spec.chain)
        # Of a text, train_rows counts documents; how many rows they give is known when it is prepared.
        check_batches(chain, spec.train, spec.data.train_rows if spec.task == "classification" else None)
        plain = spec.dump()
        question = canonical_json([spec.task, labels, plain["model"], plain["chain"]])
        if question not in self._asked:
            chain.check(self._skeleton(spec.model, spec.task, labels))
            self._asked.add(question)


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
