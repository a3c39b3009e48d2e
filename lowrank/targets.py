"""Which modules of a model a part works on.

A target is `all-linear` (every linear layer of the trunk) or a list of patterns over dotted module
names. A pattern without wildcards matches whole trailing segments, as PEFT's `target_modules` does
(`q_lin`, `attention.q_lin`); with `*` or `?` it matches the whole dotted name.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from lowrank.errors import ConfigError
from lowrank.strict import suggest

ALL_LINEAR = "all-linear"


def is_linear(module: nn.Module) -> bool:
    """Linear layers a part may work on: `nn.Linear`, GPT-2's transposed Conv1D, and what another part put there."""
    return isinstance(module, nn.Linear) or is_transposed(module) or hasattr(module, "dense_weight")


def is_transposed(module: nn.Module) -> bool:
    """GPT-2's Conv1D, a linear layer whose weight lies as (in, out).

    Told by its name: importing the class costs every job half of what importing torch does.
    """
    return any(
        f"{kind.__module__}.{kind.__name__}" == "transformers.pytorch_utils.Conv1D" for kind in type(module).__mro__
    )


def _linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers by name, in model order; a layer inside another one is how that one stores its weight."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if is_linear(module) and name.rpartition(".")[0] not in found:
            found[name] = module
    return found


def output_embedding(model: nn.Module) -> nn.Module | None:
    """The vocabulary projection of a language model (lm_head), or None."""
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if getter is not None else None


def head_names(model: nn.Module) -> list[str]:
    """Names of the task layers outside the trunk: classifier, pre_classifier, ...

    A vocabulary projection is no head: it comes with the base, often tied to the embeddings. What stands between
    the trunk and it, as in BERT's masked language model, is one.
    """
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not hasattr(model, prefix):
        return []
    trunk, vocabulary = getattr(model, prefix), output_embedding(model)
    return [
        name for name, child in model.named_children() if child is not trunk for name in _heads(name, child, vocabulary)
    ]


def _heads(name: str, module: nn.Module, vocabulary: nn.Module | None) -> list[str]:
    """The module, or where it holds the vocabulary projection, what else it holds."""
    if module is vocabulary:
        return []
    if vocabulary is None or not any(module is vocabulary for module in module.modules()):
        return [name]
    return [found for key, child in module.named_children() for found in _heads(f"{name}.{key}", child, vocabulary)]


def linear_names(model: nn.Module, *, head: bool) -> list[str]:
    """Dotted names of the linear layers of the trunk (`head=False`) or of the head (`head=True`).

    A module that is used in two places is named once. The vocabulary projection belongs to neither,
    as in PEFT's `all-linear`; a pattern that names it reaches it.
    """
    heads, vocabulary = head_names(model), output_embedding(model)
    return [
        name
        for name, module in _linear_modules(model).items()
        if module is not vocabulary and any(name == h or name.startswith(f"{h}.") for h in heads) == head
    ]


def select(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """The dotted names of the linear modules that `targets` names, in model order.

    Raises:
        ConfigError: a pattern that matches nothing, or a module that is not linear.
    """
    patterns = [targets] if isinstance(targets, str) else list(targets)
    modules = {name: module for name, module in model.named_modules() if name}
    linear = _linear_modules(model)
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern == ALL_LINEAR:
            chosen.update(linear_names(model, head=False))
            continue
        hits = [name for name in modules if _matches(pattern, name)]
        linear_hits = [name for name in hits if name in linear]
        if not hits:
            leaves = {name.rsplit(".", 1)[-1] for name in linear}
            raise ConfigError(
                f"target {pattern!r} matches no module of {type(model).__name__}{suggest(pattern, leaves)}"
            )
        if not linear_hits or (len(linear_hits) < len(hits) and not set("*?[") & set(pattern)):
            other = next(name for name in hits if name not in linear)
            raise ConfigError(
                f"target {pattern!r} matches {other!r}, which is a {type(modules[other]).__name__}; "
                "allowed: linear layers"
            )
        chosen.update(linear_hits)
    return [name for name in modules if name in chosen]


def _matches(pattern: str, name: str) -> bool:
    if set("*?[") & set(pattern):
        return fnmatch.fnmatchcase(name, pattern)
    return name == pattern or name.endswith(f".{pattern}")
