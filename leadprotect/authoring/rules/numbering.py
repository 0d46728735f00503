"""Numbers count up along the chain, and none is taken twice."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from leadprotect.authoring.finding import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.authoring.chain import RevisionChain, RevisionFile


def numbering(chain: RevisionChain) -> Iterator[Problem]:
    """The number decides nothing to Alembic; to whoever reads a folder or a log it is the order."""
    taken: dict[int, list[RevisionFile]] = defaultdict(list)
    for one in chain.revisions:
        if one.number is not None:
            taken[one.number].append(one)
    for number, those in taken.items():
        for one in sorted(those, key=lambda each: each.file.name)[1:]:
            yield Problem(
                "numbering", one.file, one.line("revision"),
                f"the number {number:04} is taken twice: by {those[0].id} and by {one.id}",
                "give the newer one the next number: leadprotect new --rebase, or by hand what leadprotect next prints",
            )  # fmt: skip
    counted = [one for one in chain.linked if one.number is not None and len(taken[one.number]) == 1]
    for below, one in pairwise(counted):
        if one.number != (below.number or 0) + 1 and one.below == (below.id,):
            yield Problem(
                "numbering", one.file, one.line("revision"),
                f"{one.number:04} follows {below.number:04}: a number is left out or out of order",
                f"call it {(below.number or 0) + 1:04}, in its id and its file's name",
            )  # fmt: skip
