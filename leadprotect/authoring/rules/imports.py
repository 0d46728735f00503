"""A revision depends on nothing that changes."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from leadprotect.authoring.finding import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.authoring.chain import RevisionChain, RevisionFile

_STAYS = "leadprotect.settings"


def imports(chain: RevisionChain) -> Iterator[Problem]:
    """What it imports is of another version when somebody runs it in a year: it would do something else then."""
    for one in chain.revisions:
        for line, module in _imported(one):
            if module.split(".")[0] == "leadprotect" and not f"{module}.".startswith(f"{_STAYS}."):
                yield Problem("imports", one.file, line, f"it imports {module}, which changes with every version",
                              f"import {_STAYS} alone, and write the SQL into the revision")  # fmt: skip


def _imported(one: RevisionFile) -> Iterator[tuple[int, str]]:
    for node in ast.walk(one.tree):
        if isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
