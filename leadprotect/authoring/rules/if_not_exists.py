"""No table, type, index, view or function is created only where it is missing."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from leadprotect.authoring.finding import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from leadprotect.authoring.chain import RevisionChain

_ONLY_IF = re.compile(
    r"\b(TABLE|TYPE|INDEX(?:\s+CONCURRENTLY)?|VIEW|FUNCTION|SEQUENCE|COLUMN)\s+IF\s+NOT\s+EXISTS\b", re.IGNORECASE
)


def if_not_exists(chain: RevisionChain) -> Iterator[Problem]:
    """Another shape under the same name, or an invalid index, is taken for what was meant, and the revision is stamped.

    Source: https://www.postgresql.org/docs/current/sql-createtable.html, on IF NOT EXISTS: there is no guarantee
    that the existing relation is anything like the one that would have been created.
    """
    for one in chain.revisions:
        for line, found in one.matches(_ONLY_IF):
            yield _problem(one.file, line, " ".join(found[0].upper().split()))
        for node in ast.walk(one.tree):
            if isinstance(node, ast.keyword) and node.arg == "if_not_exists" and not _is_false(node.value):
                yield _problem(one.file, node.value.lineno, "if_not_exists")


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def _problem(file: Path, line: int, what: str) -> Problem:
    return Problem(
        "if-not-exists", file, line, f"{what} takes whatever has the name for what is meant",
        "create it plainly: where it exists, the upgrade stops before it is stamped",
    )  # fmt: skip
