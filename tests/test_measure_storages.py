"""Bytes by storage and operations, against closed forms."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from lowrank.measure import FlopCounter, optimizer_bytes, saved_tensors, storage_bytes


def test_saved_activations_of_two_layers_are_the_closed_form() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8, bias=False))
    x = torch.randn(5, 8)
    with saved_tensors() as saved:
        model(x)
    # The input, and the output of ReLU, which the next layer saves too.
    assert storage_bytes(saved.held(), exclude=model.parameters()) == 4 * 5 * (8 + 32)


def test_what_the_graph_let_go_is_not_counted() -> None:
    x = torch.randn(100, requires_grad=True)
    with saved_tensors() as saved:
        kept, dropped = x.exp(), x.cos()
        assert storage_bytes(saved.held()) == 4 * 200
        del dropped
        assert storage_bytes(saved.held()) == 4 * 100
    kept.sum().backward()
    assert storage_bytes(saved.held()) == 0


def test_storages_count_once_and_whole() -> None:
    x = torch.zeros(10, 10)
    assert storage_bytes([x, x[0], x.t(), x.view(-1)]) == 400
    assert storage_bytes([x[0]]) == 400
    assert storage_bytes([x, torch.zeros(3)], exclude=[x[5]]) == 12
    meta = torch.empty(10, 10, device="meta")
    assert storage_bytes([meta, meta[0], torch.empty(1, device="meta")]) == 404


def test_optimizer_bytes_count_what_a_view_keeps_alive() -> None:
    parameter = nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    assert optimizer_bytes(optimizer) == 0
    optimizer.state[parameter]["projector"] = torch.zeros(100, 100)[:2]
    optimizer.state[parameter]["nested"] = {"moments": [torch.zeros(5), torch.zeros(5)]}
    assert optimizer_bytes(optimizer) == 40_000 + 40


def test_flops_count_attention_on_the_cpu() -> None:
    heads, tokens, width = 3, 16, 8
    q, k, v = (torch.randn(2, heads, tokens, width, requires_grad=True) for _ in range(3))
    with FlopCounter() as forward:
        y = functional.scaled_dot_product_attention(q, k, v)
    with FlopCounter() as backward:
        y.sum().backward()
    product = 2 * 2 * heads * tokens * tokens * width
    assert forward.get_total_flops() == 2 * product
    assert backward.get_total_flops() == 5 * product  # the scores are computed again
