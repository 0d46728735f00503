"""The package as its source has it: modules, rooms, and what each module defines."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from tests.support.database import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = ROOT / "leadprotect"

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""Dotted name of every module -> its file."""

ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def defined(path: Path, *kinds: type[ast.stmt]) -> list[str]:
    """Public names that a module defines at its top level: functions and classes, or some of them."""
    wanted = kinds or (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = [node.name for node in body if isinstance(node, wanted)]  # type: ignore[attr-defined]
    return sorted({name for name in names if not name.startswith("_")})


def kept(path: Path) -> list[str]:
    """What a module keeps from one call to the next: containers that begin empty, counters, and caches of functions."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None and grows(node.value):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            found.append(ast.unparse(target))
        if isinstance(node, ast.FunctionDef) and any("cache" in ast.unparse(mark) for mark in node.decorator_list):
            found.append(node.name)
    return found


def grows(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).rpartition(".")[2] in {
            *("Counter", "OrderedDict", "WeakKeyDictionary", "WeakSet", "WeakValueDictionary", "count", "defaultdict"),
            *("deque", "dict", "list", "set"),
        }
    return isinstance(value, (ast.Dict, ast.List)) and not ast.unparse(value).strip("[]{}")
