"""Tables that no run enters: counts on shapes alone, and arithmetic over the document's own numbers."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from lowrank.errors import ConfigError
from lowrank.report.context import Context, table
from lowrank.report.frame import plain, select
from lowrank.report.kinds import Arithmetic, ArithmeticRow, CellRef, CountRow, Counts
from lowrank.spec import ChainOptions, ModelSpec
from lowrank.strict import Strict, parse, suggest

if TYPE_CHECKING:
    from torch import Tensor


class _Chain(Strict):
    chain: ChainOptions


BYTES = ("parameter_bytes", "gradient_bytes", "optimizer_bytes", "saved_activation_bytes")


@table(Counts)
def counts(context: Context, name: str) -> pd.DataFrame:
    """Parameters, and the bytes of a training step by category, of each row's method on its model.

    base_parameters: of the model alone. parameters: with what the method adds. trainable_share =
    trainable_parameters / parameters. total_bytes: the sum of the categories; a row without a batch has
    no activations, so neither those nor a total.
    """
    view, place = context.table_view(Counts, name)
    return pd.DataFrame([count(row, f"{place}: {row.label}", view.bytes) for row in view.rows])


def parse_chain(chain: Any, place: str) -> ChainOptions:
    """The options of a chain as an arm writes it.

    Raises:
        ConfigError: an unknown part or option.
    """
    return parse(_Chain, {"chain": chain}, place).chain


def count(row: CountRow, place: str, with_bytes: bool = True) -> dict[str, Any]:
    """A method on a model in numbers, on shapes alone; nothing is fetched.

    Raises:
        ConfigError: the method does not fit the model.
    """
    # Here, since only such a table needs torch.
    import torch

    from lowrank.cards import model_card
    from lowrank.measure import counts as count_parameters
    from lowrank.measure import predict_step
    from lowrank.methods.chain import Chain
    from lowrank.models.load import skeleton

    model = ModelSpec(card=row.card, layers=row.layers, dtype=row.dtype)
    options = parse_chain(row.chain, place)

    base = skeleton(model, row.task, row.labels)
    plain_parameters = sum(parameter.numel() for parameter in base.parameters())
    if with_bytes:
        try:
            batch = _batch(base, row, Chain.build(options).batch_multiple())
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
        found = predict_step(lambda: base, options, batch).model_dump()
        if row.batch_size is None:
            found["saved_activation_bytes"] = None
    else:
        with torch.device("meta"):  # first values are not drawn: those of a large model would fill gigabytes
            Chain.build(options).attach(base)
        found = {**count_parameters(base)}
    sizes = [found[category] for category in BYTES] if with_bytes else []
    return {
        "label": row.label,
        **row.columns,
        "model": model_card(row.card).title,
        "chain": "+".join(option.part for option in options),
        "base_parameters": plain_parameters,
        "parameters": found["parameters"],
        "trainable_parameters": found["trainable_parameters"],
        "trainable_share": found["trainable_parameters"] / found["parameters"],
        **({category: found[category] for category in BYTES} if with_bytes else {}),
        **({"total_bytes": None if None in sizes else sum(sizes)} if with_bytes else {}),
    }


def _batch(base: Any, row: CountRow, multiple: int) -> dict[str, Tensor]:
    """A batch of the row's size; where it gives none, the smallest that a step takes."""
    import torch

    examples = row.batch_size or multiple
    if base.main_input_name == "pixel_values":
        side, channels = base.config.image_size, base.config.num_channels
        inputs = {"pixel_values": torch.zeros(examples, channels, side, side)}
    else:
        if row.batch_size is not None and row.tokens is None:
            raise ValueError("batch_size needs tokens, the length of each example")
        ids = torch.zeros(examples, row.tokens or 8, dtype=torch.int64)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = inputs["input_ids"] if row.task.endswith("_lm") else torch.zeros(examples, dtype=torch.int64)
    return {**inputs, "labels": labels}


@table(Arithmetic)
def arithmetic(context: Context, name: str) -> pd.DataFrame:
    """Each formula with its value, and whether the printed number is that value rounded to its own digits."""
    view, place = context.table_view(Arithmetic, name)
    return pd.DataFrame([_calculate(context, row, f"{place}: {row.label}") for row in view.rows])


def _calculate(context: Context, row: ArithmeticRow, place: str) -> dict[str, Any]:
    names = {key: _value(context, value, place) for key, value in row.values.items()}
    missing = [key for key, value in names.items() if value is None]
    given = ", ".join(f"{key} = {value}" for key, value in names.items())
    value = None if missing else evaluate(row.formula, {k: v for k, v in names.items() if v is not None}, place)
    return {
        "label": row.label,
        "formula": row.formula,
        "with": given,
        "value": value,
        "printed": row.printed,
        "agrees": "" if value is None or row.printed is None else "yes" if rounds_to(value, row.printed) else "no",
        "cause": f"no value for {', '.join(missing)}" if missing else "",
    }


def _value(context: Context, value: int | float | CellRef, place: str) -> int | float | None:
    if not isinstance(value, CellRef):
        return value
    rows = select(context.table(value.table), {key: (wanted,) for key, wanted in value.row.items()}, place)
    if len(rows) > 1:
        raise ConfigError(f"{place}: {value.row} names {len(rows)} rows of {value.table}, allowed: one")
    if rows.empty:
        return None
    if value.column not in rows:
        raise ConfigError(f"{place}: unknown column {value.column!r}{suggest(value.column, map(str, rows.columns))}")
    found: int | float | None = plain(rows[value.column].iloc[0])
    return found


def rounds_to(value: float, printed: str | int | float) -> bool:
    """Whether a value, rounded to the last digit that is printed, is the printed number.

    Args:
        value: exact.
        printed: 1.09, "1.10" (text keeps its zeros), 2.9e6.
    """
    text = str(printed).lower()
    digits, _, exponent = text.partition("e")
    decimals = len(digits.partition(".")[2]) - int(exponent or 0)
    return abs(value - float(text)) <= 0.5 * 10.0**-decimals * (1 + 1e-9)


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
    "min": min,
    "max": max,
}


def evaluate(formula: str, values: Mapping[str, int | float], place: str) -> int | float:
    """The value of a formula; integers stay exact.

    Raises:
        ConfigError: a name, function or syntax that is not allowed, or a division by zero.
    """
    try:
        found: int | float = _evaluate(ast.parse(formula, mode="eval").body, values)
    except (SyntaxError, ValueError, TypeError, ArithmeticError) as error:
        raise ConfigError(f"{place}: formula {formula!r}: {error}") from None
    return found


def _evaluate(node: ast.AST, values: Mapping[str, int | float]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name):
            if name not in values:
                raise ValueError(f"unknown name {name!r}{suggest(name, values)}")
            return values[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, values), _evaluate(right, values))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(operand, values))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_evaluate(argument, values) for argument in args))
    raise ValueError(f"{ast.unparse(node)!r} is not allowed{suggest('', [*_FUNCTIONS, '+ - * / // % **'])}")
