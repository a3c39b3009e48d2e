"""SparseLoRA chooses its channels from the whole batch, however it is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrank.tasks import task
from tests.chain_runs import attach, check_accumulation
from tests.test_contextual_sparsity import KNOWN, LANGUAGE, lora, prompted, randomise, sparse
from tests.tiny_models import TOKENS, make
from tests.tolerances import FLOAT64_IDENTITY, PEER_GRADIENT


@pytest.mark.parametrize("micro", [1, 3, 4])
@pytest.mark.parametrize("family", KNOWN)
def test_the_whole_batch_chooses_however_it_is_cut(family: str, micro: int) -> None:
    """Over steps that are dense and steps that are sparse; cut in 3, the last micro-batch is short."""
    tokens = "none" if family in LANGUAGE else "output"
    chain = [lora(family, "all"), sparse(dense_steps=2, dense_tokens=tokens)]
    check_accumulation(family, chain, micro, FLOAT64_IDENTITY)


def cut(inputs: dict[str, Tensor], sizes: list[int]) -> list[dict[str, Tensor]]:
    """Pieces of so many examples, each as wide as its longest text."""
    pieces = []
    for start, size in zip([0, *itertools.accumulate(sizes)], sizes):
        piece = {key: tensor[start : start + size] for key, tensor in inputs.items()}
        width = int(piece["attention_mask"].sum(1).max())
        pieces.append({key: tensor[:, :width] if tensor.ndim == 2 else tensor for key, tensor in piece.items()})
    return pieces


@given(lengths=st.lists(st.integers(4, TOKENS), min_size=4, max_size=4), first=st.integers(1, 3))
@settings(max_examples=15)
def test_pieces_of_any_width_choose_together(lengths: list[int], first: int) -> None:
    """Also where one of them has no token to choose by, and as the velora behind sees it."""
    inputs = prompted("llama", 4, padded=False)
    for row, length in enumerate(lengths):
        inputs["attention_mask"][row, length:] = 0
    inputs["labels"][inputs["attention_mask"] == 0] = -100
    inputs["labels"][:first] = inputs["input_ids"][:first].where(inputs["attention_mask"][:first] == 1, -100)
    found = []
    for sizes in ([4], [first, 4 - first]):
        model = make("llama")
        velora = {"part": "velora", "layers": "vd", "num_groups": 4}
        chain = attach(model, lora("llama", "all"), sparse(), velora)
        randomise(chain)
        model.train()
        pieces = cut(inputs, sizes)
        chain.before_step(pieces, 0)
        for piece in pieces:
            chain.before_forward(piece, 0)
            logits = model(input_ids=piece["input_ids"], attention_mask=piece["attention_mask"]).logits
            task("causal_lm").losses(logits, piece)[0].sum().backward()
        found.append({name: p.grad for name, p in chain.trainable().items() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        PEER_GRADIENT.check(found[1][name], gradient)
