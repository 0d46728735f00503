"""A function that runs with its owner's rights finds its names where it was written, not where a caller points."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from leadprotect.authoring.finding import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.authoring.chain import RevisionChain

# what stands before its body; a body in SQL's own words has its names looked up when it is made
_FUNCTION = re.compile(
    r"CREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE)\s+(?P<name>[^\s(]+)(?P<head>.*?)(?P<body>\bAS\s+[$']|\bBEGIN\s+ATOMIC\b|\bRETURN\b(?!S)|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_PINNED = re.compile(r"\bSET\s+search_path\b", re.IGNORECASE)
_DEFINER = re.compile(r"\bSECURITY\s+DEFINER\b", re.IGNORECASE)


def definers(chain: RevisionChain) -> Iterator[Problem]:
    """Without a pinned path, whoever calls it puts his own function or table first, and it runs as the owner.

    Source: https://www.postgresql.org/docs/current/sql-createfunction.html#SQL-CREATEFUNCTION-SECURITY
    """
    for one in chain.revisions:
        for line, found in one.matches(_FUNCTION):
            by_text = found["body"].upper().startswith("AS")
            if by_text and _DEFINER.search(found["head"]) and not _PINNED.search(found["head"]):
                yield Problem(
                    "definers", one.file, line,
                    f"{found['name']} is SECURITY DEFINER and its search_path is the caller's",
                    "add SET search_path = pg_catalog, pg_temp, and name every object with its schema",
                )  # fmt: skip
