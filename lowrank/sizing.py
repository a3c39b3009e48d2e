"""What a method on a model would need, before anything is fetched: `lowrank plan --model CARD --method CHAIN`."""

from __future__ import annotations

from typing import Any

import yaml

from lowrank.errors import ConfigError
from lowrank.report.analytic import count
from lowrank.report.kinds import CountRow
from lowrank.strict import parse

GB = 10**9


def sizes(model: str, method: str, **fields: Any) -> str:
    """Parameters, and the bytes of a training step by category, as lines of text.

    Args:
        model: a model card; its shape is enough, nothing is fetched.
        method: a chain, `nf4+lora`, or YAML where parts are told something: `[nf4, {part: lora, rank: 64}]`.
        fields: further fields of a row of the table kind `counts`: task, labels, layers, dtype, batch_size, tokens.

    Raises:
        ConfigError: an unknown card, part or option, or a method that does not fit the model.
    """
    where = "lowrank plan"
    try:
        chain = yaml.safe_load(method)  # a plain name is YAML too
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: --method {method!r}: not valid YAML: {' '.join(str(error).split())}") from None
    told = {key: value for key, value in fields.items() if value is not None}
    row = parse(CountRow, {"label": method, "card": model, "chain": chain, **told}, where)
    found = count(row, where)
    lines = [f"{found['model']}, {found['chain']}, weights in {row.dtype}"]
    share = f"{found['trainable_parameters']:,} ({found['trainable_share']:.4%})"
    lines += [f"{'parameters':<28}{found['parameters']:,}", f"{'trainable parameters':<28}{share}"]
    for name in (key for key in found if key.endswith("_bytes")):
        size = found[name]
        text = "give --batch-size and --tokens" if size is None else f"{size / GB:,.3f} GB"
        lines.append(f"{name.removesuffix('_bytes').replace('_', ' '):<28}{text}")
    if row.batch_size is None:
        rest = sum(found[name] or 0 for name in found if name.endswith("_bytes") and name != "total_bytes")
        lines.append(f"{'without activations':<28}{rest / GB:,.3f} GB")
    return "\n".join(lines)
