"""Which tokens a masked language model has to guess, and what it sees in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank.errors import ConfigError
from lowrank.tasks import IGNORED

MASK_TOKENS = ("[MASK]", "<mask>")
HIDDEN, REPLACED = 0.8, 0.1
"""Of the chosen tokens: shown as the mask, shown as a random token; the rest is shown as it is."""

Draw = tuple[int, int] | None
"""(seed, epoch); None draws the masks of evaluation, which never change."""


@dataclass(frozen=True)
class Masking:
    """Hides tokens of a batch.

    A token is chosen with probability `fraction`; of the chosen, 80 % are shown as the mask token, 10 % as a random
    token and 10 % as they are, and only they are predicted. Special tokens and padding are never chosen. What a row
    draws depends on seed, epoch and the row alone: neither on the batch it stands in, nor on the steps before.

    Source: Devlin et al. 2019, "BERT", section 3.1.
    Departs from: the data collators of transformers, which draw from the global generator, so that a resumed run
    or one with other micro-batches sees other masks.

    Attributes:
        fraction: share of the tokens that are chosen; 0 hides none and predicts every position from itself, padding
            included, as the comparison document's script does.
        mask: id of the mask token.
        special: (k,) int64, ids that are never chosen.
        vocabulary: how many tokens there are.
    """

    fraction: float
    mask: int
    special: Tensor
    vocabulary: int

    def __call__(self, ids: Tensor, real: Tensor, rows: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """What the model sees, and what it predicts.

        Args:
            ids: (B, T) int64.
            real: (B, T) bool, false at padding.
            rows: (B,) int64, the rows' numbers in their split.
            draw: seed and epoch.

        Returns:
            input_ids (B, T) int64 and labels (B, T) int64, -100 where nothing is predicted.
        """
        if self.fraction == 0:
            return ids, ids
        # Two more words tell masks from the order of the rows, and training from evaluation.
        words = (1, 0, 0) if draw is None else (2, *draw)
        chance, kind, other = (np.empty(tuple(ids.shape)) for _ in range(3))
        for index, row in enumerate(rows.tolist()):
            # Token by token, so that a longer row of the batch changes nothing.
            draws = np.random.default_rng([*words, row]).random((ids.shape[1], 3))
            chance[index], kind[index], other[index] = draws.T
        chosen = torch.from_numpy(chance < self.fraction) & real & ~torch.isin(ids, self.special)
        hidden = chosen & torch.from_numpy(kind < HIDDEN)
        replaced = chosen & torch.from_numpy((kind >= HIDDEN) & (kind < HIDDEN + REPLACED))
        random = torch.from_numpy((other * self.vocabulary).astype(np.int64))
        seen = torch.where(replaced, random, ids.masked_fill(hidden, self.mask))
        return seen, ids.masked_fill(~chosen, IGNORED)


def masking(manifest: Mapping[str, Any], fraction: float, folder: Path) -> Masking:
    """The masking that a prepared data folder's tokenizer allows.

    Raises:
        ConfigError: the tokenizer has no mask token.
    """
    special: dict[str, int] = manifest["special_ids"]
    mask = next((special[name] for name in MASK_TOKENS if name in special), None)
    if mask is None:
        raise ConfigError(
            f"{folder}: the tokenizer of {manifest['tokenizer']['card']!r} has no mask token, which task 'masked_lm' "
            f"needs; allowed: one of {', '.join(MASK_TOKENS)}"
        )
    return Masking(fraction, mask, torch.tensor(sorted(special.values())), manifest["vocabulary"])
