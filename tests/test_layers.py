"""Imports go down the layers that docs/architecture.md draws, and only the parts know their names."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowrank import registry

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "lowrank").rglob("*.py"))

METHOD_WORDS = {"name", "names", "part", "parts", "method", "methods", "chain"}
"""What a variable or attribute that holds a part's name is called."""


def layers() -> dict[str, int]:
    """Unit (`lowrank.train`) to the height of its layer, read from the page; 0 is the lowest."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    drawn = re.search(r"^## Layers\n.*?\n\n((?: {4}.*\n)+)", text, re.MULTILINE | re.DOTALL)
    assert drawn, "docs/architecture.md draws no layers"
    lines = re.split(r"->", drawn[1])
    heights = {"lowrank.cli": len(lines), "lowrank.__main__": len(lines)}
    for height, line in enumerate(reversed(lines)):
        heights |= dict.fromkeys(re.findall(r"lowrank\.[a-z_]+", line), height)
    return heights


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def unit(module: str) -> str:
    return ".".join(module.split(".")[:2])


def runtime_imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module, in functions too; imports for type checkers are no dependency of running code."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            if node.module == "lowrank":
                yield from (f"lowrank.{alias.name}" for alias in node.names if not alias.name.startswith("__"))
            else:
                yield node.module or ""
        pending += ast.iter_child_nodes(node)


def upward(module: str, imported: str, heights: dict[str, int]) -> bool:
    return heights[unit(imported)] > heights[unit(module)]


def part_comparisons(tree: ast.AST, names: set[str]) -> Iterator[int]:
    """Lines that compare something called a name, part or method with the name of a part."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            subject, tested = node, node
        elif isinstance(node, ast.Match):
            subject, tested = node.subject, ast.Module([], [])
            tested.body = [ast.Expr(case.pattern) for case in node.cases]  # type: ignore[arg-type]
        else:
            continue
        words = {n.id for n in ast.walk(subject) if isinstance(n, ast.Name)}
        words |= {n.attr for n in ast.walk(subject) if isinstance(n, ast.Attribute)}
        strings = {n.value for n in ast.walk(tested) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        if words & METHOD_WORDS and strings & names:
            yield node.lineno


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    heights, module = layers(), module_name(path)
    imports = [name for name in runtime_imports(ast.parse(path.read_text())) if name.split(".")[0] == "lowrank"]
    for name in {unit(m) for m in [module, *imports]} - {"lowrank"}:
        assert name in heights, f"{name} stands in no layer of docs/architecture.md"
    if module != "lowrank":
        found = sorted({name for name in imports if name != "lowrank" and upward(module, name, heights)})
        assert not found, f"{module} imports {found}, which stand above it in docs/architecture.md"


def test_units_of_one_layer_do_not_import_each_other_both_ways() -> None:
    edges = {
        (unit(module_name(path)), unit(name))
        for path in MODULES
        for name in runtime_imports(ast.parse(path.read_text()))
        if name.startswith("lowrank.")
    }
    both = [(a, b) for a, b in edges if a < b and (b, a) in edges]
    assert not both


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_the_package_does_not_know_the_workflow(path: Path) -> None:
    assert not [m for m in runtime_imports(ast.parse(path.read_text())) if m.split(".")[0] == "snakemake"]


@pytest.mark.parametrize("path", [p for p in MODULES if "methods" not in p.parts], ids=module_name)
def test_only_parts_ask_which_part_it_is(path: Path) -> None:
    parts = registry.parts()
    tree = ast.parse(path.read_text())
    assert not [f"{path}:{line}" for line in part_comparisons(tree, set(parts))]
    homes = {part.__module__ for part in parts.values()}
    assert not homes & set(runtime_imports(tree)), "a part is reached through its chain, never by import"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("if part.name == 'lora': pass", 1),
        ("if method in ('galore', 'lora'): pass", 1),
        ("if 'lora' in chain.names: pass", 1),
        ("match spec.method:\n    case 'lora': pass", 1),
        ("if scale == 'full': pass", 0),
        ("if part.name == other.name: pass", 0),
    ],
)
def test_the_check_sees_comparisons(source: str, lines: int) -> None:
    assert len(list(part_comparisons(ast.parse(source), {"lora", "galore", "full"}))) == lines


def test_the_check_sees_imports() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import lowrank.report\n"
        "else:\n    from lowrank import train\n"
        "def f():\n    from lowrank.methods.chain import Chain\n"
    )
    found = set(runtime_imports(ast.parse(source)))
    assert found == {"typing", "lowrank.train", "lowrank.methods.chain"}
    heights = layers()
    assert upward("lowrank.spec", "lowrank.train.loop", heights)
    assert not upward("lowrank.train.loop", "lowrank.spec", heights)


def test_every_module_is_short() -> None:
    tests = (ROOT / "tests").rglob("*.py")
    lengths = {module_name(path): len(path.read_text().splitlines()) for path in itertools.chain(MODULES, tests)}
    assert not {name: length for name, length in lengths.items() if length > 250}
