"""What can be refused before a run starts: a chain that cannot work on a model or share out its batches."""

from __future__ import annotations

import functools

from lowrank.asked import answer, shape
from lowrank.cards import DataCard, ModelCard
from lowrank.images import check_fit
from lowrank.methods.chain import Chain
from lowrank.models.load import skeleton
from lowrank.spec import RunSpec
from lowrank.train.checks import check_batches

_untouched = functools.lru_cache(maxsize=32)(skeleton)
"""Models without numbers, to which no chain is attached."""


def check(spec: RunSpec, model: ModelCard, data: DataCard) -> None:
    """Refuses a run that cannot work, without a single number of its model.

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
    question = {"asked": "works", **shape(spec, labels), "chain": spec.dump()["chain"]}

    def works() -> bool:
        chain.check(_untouched(spec.model, spec.task, labels))
        return True

    answer(question, works)
