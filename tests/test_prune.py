"""What is pruned, how much, and when: masks, counts, schedules, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from lowrank.errors import ConfigError
from lowrank.methods.adapted import adapted
from lowrank.methods.chain import Chain
from lowrank.methods.prune import Prune, above_kth_largest, above_quantile, strongest_components
from lowrank.registry import parse_options


@given(
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    sparsity=st.floats(0, 0.99),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_magnitude_keeps_what_lies_above_the_quantile(shape: list[int], sparsity: float, dtype: torch.dtype) -> None:
    """As the document's code says it, with torch.quantile; and one in floor(s (n - 1)) + 1 is gone."""
    weight = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))
    place = sparsity * (weight.numel() - 1)
    assume(abs(place - round(place)) > 1e-4 or sparsity == 0)  # at a whole index torch.quantile rounds its weights
    mask = above_quantile(weight, sparsity)
    if sparsity == 0:
        assert mask.all()
    else:
        assert torch.equal(mask, weight.abs() > weight.abs().quantile(sparsity))
        assert (~mask).sum() == int(place) + 1


@given(values=st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]), min_size=1, max_size=30), tenths=st.integers(0, 9))
def test_ties(values: list[float], tenths: int) -> None:
    """Ties go under "strictly above" and stay under "at or above"."""
    weight, sparsity = torch.tensor(values), tenths / 10
    above, top = above_quantile(weight, sparsity), above_kth_largest(weight, sparsity)
    ordered = sorted(abs(value) for value in values)
    k = len(values) - min(round(sparsity * len(values)), len(values) - 1)
    assert top.tolist() == [abs(value) >= ordered[-k] for value in values]
    if sparsity > 0:
        cut = ordered[tenths * (len(values) - 1) // 10]
        assert above.tolist() == [abs(value) > cut for value in values]


@given(rank=st.integers(1, 9), heads=st.integers(0, 3), sparsity=st.floats(0, 0.99))
def test_structured_removes_the_terms_that_add_least(rank: int, heads: int, sparsity: float) -> None:
    """By the Frobenius norm of each rank-one term B_i A_i, over all heads of a layer."""
    lead = (heads,) if heads else ()
    generator = torch.Generator().manual_seed(rank)
    down = torch.randn(*lead, rank, 5, generator=generator, dtype=torch.float64)
    up = torch.randn(*lead, 7, rank, generator=generator, dtype=torch.float64)
    kept = strongest_components(down, up, sparsity)
    terms = torch.einsum("...ri,...or->...roi", down, up).flatten(-2).norm(dim=-1)
    assert kept.shape == (*lead, rank)
    assert (~kept).sum() == round(sparsity * kept.numel())
    if kept.any() and not kept.all():
        assert terms[kept].min() >= terms[~kept].max()


def test_published_count_on_distilbert() -> None:
    """73,728 of 147,456 zeros: q_lin and v_lin of the real shapes, rank 8, 50 %."""
    with torch.device("meta"):
        model = DistilBertForSequenceClassification(DistilBertConfig())
    lora = {"part": "lora", "rank": 8, "targets": ["q_lin", "v_lin"], "head": "frozen"}
    Chain.build([parse_options(lora)]).attach(model)
    for _, layer in adapted(model):
        layer.adapters.to_empty(device="cpu")
        for factor in layer.adapters.parameters():
            nn.init.normal_(factor, generator=torch.Generator().manual_seed(0))
    part = Prune(start=1)
    part.attach(model, torch.Generator())
    assert part.zeros() == (0, 147_456)
    part.after_step(model, torch.optim.SGD([nn.Parameter(torch.zeros(1))]), 1)
    assert part.zeros() == (73_728, 147_456)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 3}, {3: 0.5}),
        ({"start": 3, "every": 3}, {3: 0.5, 6: 0.5, 9: 0.5}),
        ({"start": 3, "every": 3, "end": 7}, {3: 0.5, 6: 0.5, 7: 0.5}),
        ({"start": 2, "every": 2, "end": 6, "schedule": "linear"}, {2: 0.0, 4: 0.25, 6: 0.5}),
        ({"start": 2, "every": 2, "end": 6, "schedule": "cubic"}, {2: 0.0, 4: 0.4375, 6: 0.5}),
        ({"start": 1, "every": 3, "end": 6, "schedule": "linear"}, {1: 0.0, 4: 0.3, 6: 0.5}),
    ],
)
def test_schedule(options: dict[str, Any], expected: dict[int, float]) -> None:
    part = Prune(**options)
    found = {step: part.sparsity_at(step) for step in range(1, 10) if part.sparsity_at(step) is not None}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "start: missing"),
        ({"start": 0}, "start: 0 is out of range, allowed: > 0"),
        ({"start": 1, "sparsity": 1}, "sparsity: 1.0 is out of range, allowed: 0 <= value < 1"),
        ({"start": 1, "schedule": "cubic"}, "schedule 'cubic' needs every and end, found every=None, end=None"),
        ({"start": 5, "every": 1, "end": 5}, "end 5 with start 5 and every 1; allowed: an end after start, with every"),
        ({"start": 1, "end": 5}, "end 5 with start 1 and every None"),
        ({"start": 1, "method": "l1"}, "method 'l1' needs l1_lambda; allowed: > 0"),
        ({"start": 1, "sparcity": 0.5}, "did you mean 'sparsity'"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Prune(**options)
    assert message in str(refused.value)
