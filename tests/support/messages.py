"""Every error that the package can raise, read from its source: where, of which class, and with what text."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadprotect import errors
from tests.support.database import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASSES = {name for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, Exception)}
OF_CLICK = {"UsageError", "BadParameter", "ClickException"}


@dataclass(frozen=True)
class Message:
    """A raise; in its text {...} stands for what is known at run time only."""

    place: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}: {self.text}"


def messages() -> Iterator[Message]:
    """Those whose text, or a part of it, stands where they are raised."""
    for file in sorted((ROOT / "leadprotect").rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        if "raise " not in source:
            continue
        tree, lines = ast.parse(source), source.splitlines()
        constants = _constants(tree)
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and any(
                "raise " in line for line in lines[function.lineno : function.end_lineno]
            ):
                place = f"{file.relative_to(ROOT)}, {function.name}()"
                yield from _of_function(function, place, constants)


def _of_function(function: ast.AST, place: str, known: dict[str, ast.expr]) -> Iterator[Message]:
    nodes = [*ast.walk(function)]
    given = known | {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in nodes:
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            called = node.exc.func
            kind = (
                called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
            )
            text = "\n".join(_text(one, given) for one in node.exc.args)
            if kind in CLASSES | OF_CLICK and text.strip("{.} "):
                yield Message(place, kind, text)


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    return {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _text(node: ast.expr, given: dict[str, ast.expr], depth: int = 0) -> str:
    """The text of an expression, as far as it is written down."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, given, depth) for part in node.values)
    if isinstance(node, ast.List | ast.Tuple):
        return "; ".join(_text(one, given, depth) for one in node.elts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, given, depth) + _text(node.right, given, depth)
    if isinstance(node, ast.FormattedValue):
        node = node.value
    if isinstance(node, ast.Name) and node.id in given and depth < 3:
        return _text(given[node.id], given, depth + 1)
    return "{...}"
