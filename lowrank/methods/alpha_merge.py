"""SuperReLoRA's alpha-merge: a share of LoRA's term moves into the base every so many steps."""

from __future__ import annotations

import math
import warnings
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from lowrank.methods.adapted import adapted, add_to_weight
from lowrank.methods.merging import base_weights, refuse_coded_base, refuse_other_optimizer, require_lora, untie_targets
from lowrank.methods.part import Part
from lowrank.spec import PartOptions
from lowrank.strict import Float, PositiveInt


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{value!r} is out of range, allowed: 0 to 1")
    return value


class AlphaMerge(Part):
    """Moves the share a = `merge_fraction` of LoRA's term into the base every `merge_every` steps.

    W <- W + a s B A,   A <- p A,   B <- q B        with s = alpha / rank

    | rule         | p           | q           | the term s B A afterwards, with what W got |
    |--------------|-------------|-------------|--------------------------------------------|
    | as_published | 1 - a       | 1 - a       | (1 - a + a^2) s B A: the function changes  |
    | one_factor   | 1           | 1 - a       | s B A: the function stays                  |
    | both_factors | sqrt(1 - a) | sqrt(1 - a) | s B A: the function stays                  |

    Moments. With G = dL/dW the gradients are g_A = s B^T G and g_B = s G A^T: A's gradient scales as B and
    B's as A. So the moments that match the new factors are m_A <- q m_A, v_A <- q^2 v_A, m_B <- p m_B,
    v_B <- p^2 v_B, which leaves Adam's step m / sqrt(v) as it was. The published rule multiplies m and v of
    both with 1 - a instead, so that the next step is smaller by sqrt(1 - a).

    The document's two defects are switches: its base trains too (`full+lora+alpha_merge`), and it never
    merges (`merge_every: none`). With a = 0 this is LoRA; with a = 1 both rules that scale both factors leave
    A = B = 0, where neither gets a gradient again, and a warning says so.

    Source: the SuperReLoRA document, section "merge strategy" and its `superrelora_linear.py`.
    """

    name = "alpha_merge"
    knobs = {"m": "merge_every", "f": "merge_fraction"}

    class Options(PartOptions):
        """How much is merged, when, and by which rule."""

        merge_every: Literal["none"] | PositiveInt = 500
        """Optimizer steps between two merges; `none` never merges, as the published runs did."""
        merge_fraction: Annotated[Float, AfterValidator(_share)] = 0.1
        """a: the share that moves into the base."""
        rule: Literal["as_published", "one_factor", "both_factors"] = "as_published"

    def check(self, chain: Any, model: nn.Module) -> None:
        """Refuses a chain without lora in front, a coded base, and moments that it cannot scale; warns of an adapter
        that will be dead."""
        require_lora(chain, self)
        if self.options.merge_every != "none":
            refuse_coded_base(chain, self)
            refuse_other_optimizer(chain, self)
        if self.options.merge_fraction == 1 and self.options.rule != "one_factor":
            warnings.warn(
                f"alpha_merge: merge_fraction 1 under rule {self.options.rule!r} sets A and B to zero at the first "
                "merge, after which the adapter gets no gradient; rule 'one_factor' keeps it alive",
                stacklevel=2,
            )

    def attach(self, model: nn.Module, generator: torch.Generator) -> None:
        """Gives the targets weights of their own."""
        if self.options.merge_every != "none":
            untie_targets(model, "lora")

    @torch.no_grad()
    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Merges every `merge_every` steps."""
        every, share, rule = self.options.merge_every, self.options.merge_fraction, self.options.rule
        if every == "none" or step % every:
            return
        keep = 1 - share
        p, q = {
            "as_published": (keep, keep),
            "one_factor": (1.0, keep),
            "both_factors": (math.sqrt(keep), math.sqrt(keep)),
        }[rule]
        for _, layer in adapted(model, "lora"):
            adapter: Any = layer.adapters["lora"]
            add_to_weight(layer.base, share * adapter.delta_weight(layer))
            for factor, scale, other in ((adapter.lora_A, p, q), (adapter.lora_B, q, p)):
                factor *= scale
                first, second = (keep, keep) if rule == "as_published" else (other, other**2)
                _scale_moments(optimizer, factor, first, second)

    def changed(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights that are merged into."""
        return {} if self.options.merge_every == "none" else base_weights(model, "lora")


def _scale_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, first: float, second: float) -> None:
    """Adam's m and SGD's momentum times `first`, Adam's v times `second`."""
    for key, scale in (("exp_avg", first), ("momentum_buffer", first), ("exp_avg_sq", second)):
        moment = optimizer.state.get(parameter, {}).get(key)
        if moment is not None:
            moment *= scale
