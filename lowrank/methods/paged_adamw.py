"""Paged AdamW: QLoRA's optimizer, whose state may leave the GPU, in 32 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from lowrank.methods.bnb import bnb, dynamic_map
from lowrank.methods.part import Part
from lowrank.spec import PartOptions, TrainSpec


class PagedAdamW(Part):
    """AdamW of bitsandbytes; on CUDA its moments lie in unified memory, and move out when memory is short.

    With 8 bits the moments of tensors of 4096 elements and more are quantised in blocks of 256. On the
    CPU nothing is paged, and the update is the same.

    Source: Dettmers et al. 2023, "QLoRA", section 3 (paged optimizers); Dettmers et al. 2022, "8-bit
    Optimizers via Block-wise Quantization".

    Departs from: bitsandbytes in the layout of `state_dict`, which is torch's own here: flat per
    parameter, without the nesting that bitsandbytes adds for FSDP.
    """

    name = "paged_adamw"
    knobs = {"b": "bits"}

    class Options(PartOptions):
        """The width of the moments."""

        bits: Literal[32, 8] = 32

    def optimizer(self, named: Sequence[tuple[str, nn.Parameter]], train: TrainSpec) -> torch.optim.Optimizer:
        """AdamW over the trainable parameters with the run's lr, betas, eps and weight decay."""

        class Flat(bnb().optim.AdamW):  # type: ignore[misc]
            state_dict = torch.optim.Optimizer.state_dict

            def load_state_dict(self, state_dict: dict[str, Any]) -> None:
                super().load_state_dict(state_dict)
                for parameter, held in self.state.items() if self.is_paged else ():
                    for key in ("state1", "state2"):  # which arrive as plain tensors, that would stay on the GPU
                        page = self.get_state_buffer(parameter, held[key].dtype)
                        held[key] = page.copy_(held[key])

            def fill_qmap(self) -> None:
                cpu = torch.device("cpu")
                self.name2qmap = {"dynamic": dynamic_map(cpu), "udynamic": dynamic_map(cpu, signed=False)}

        parameters = [parameter for _, parameter in named]
        built: torch.optim.Optimizer = Flat(
            parameters,
            lr=train.lr,
            betas=train.betas,
            eps=train.eps,
            weight_decay=train.weight_decay,
            optim_bits=self.options.bits,
            is_paged=parameters[0].is_cuda,
        )
        return built
