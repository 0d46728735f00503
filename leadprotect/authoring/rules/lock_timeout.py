"""A revision that takes locks says how long it waits for them, unless its env.py does."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from leadprotect.authoring.finding import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.authoring.chain import RevisionChain, RevisionFile

_SETS = re.compile(r"\block_timeout\b", re.IGNORECASE)
_HARMLESS = {"get_bind", "get_context", "f", "inline_literal", "bulk_insert"}


def lock_timeout(chain: RevisionChain) -> Iterator[Problem]:
    """Who waits for ACCESS EXCLUSIVE stops everybody behind him, for as long as he waits: without a limit, for ever.

    A SET LOCAL in env.py holds for one transaction, so with transaction_per_migration for the first revision alone.
    Source: https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-LOCK-TIMEOUT
    """
    if chain.own_environment or _environment_sets_it(chain):
        return
    for one in chain.numbered or chain.revisions:
        for way in ("upgrade", "downgrade"):
            first = next(_work(one, way), None)
            if first is not None and not any(_SETS.search(text) for line, text in one.texts if _within(one, way, line)):
                yield Problem(
                    "lock-timeout", one.file, first,
                    f"{way}() waits for its locks without an end, and everybody behind it waits, too",
                    "begin it with op.execute(\"SET LOCAL lock_timeout = '100ms'\")",
                )  # fmt: skip


def _environment_sets_it(chain: RevisionChain) -> bool:
    """For every revision: a SET LOCAL there ends with the first one."""
    file = chain.scripts / "env.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return bool(_SETS.search(text)) and not re.search(r"SET\s+LOCAL\s+lock_timeout", text, re.IGNORECASE)


def _work(one: RevisionFile, way: str) -> Iterator[int]:
    """The lines of a function where Alembic is told to do something."""
    if function := one.function(way):
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        for node in sorted(calls, key=lambda call: call.lineno):
            name = node.func
            if isinstance(name, ast.Attribute) and isinstance(name.value, ast.Name) and name.value.id == "op":
                if name.attr not in _HARMLESS:
                    yield node.lineno
            elif isinstance(name, ast.Name) and one.function(name.id):
                yield from list(_work(one, name.id))[:1] and [node.lineno]


def _within(one: RevisionFile, way: str, line: int) -> bool:
    """Whether a line is of a function, or of none: a constant of the module."""
    functions = [node for node in one.tree.body if isinstance(node, ast.FunctionDef)]
    inside = next((node for node in functions if node.lineno <= line <= (node.end_lineno or line)), None)
    return inside is None or inside.name not in ("upgrade", "downgrade") or inside.name == way
