"""Expand, then migrate, then contract; a new round begins after a contract only."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from leadprotect.authoring.finding import Problem
from leadprotect.phases import ORDER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.authoring.chain import RevisionChain


def phases_in_order(chain: RevisionChain) -> Iterator[Problem]:
    """Contract enforces what migrate has filled, and migrate fills what expand has made."""
    with_phase = [one for one in chain.linked if one.phase in ORDER]
    for below, one in pairwise(with_phase):
        if not may_follow(below.phase, one.phase):
            yield Problem(
                "phases-in-order", one.file, one.line("phase"),
                f"{one.phase} comes after {below.phase} of {below.id}, and no contract is between them",
                "give it a later phase, or put it before that one",
            )  # fmt: skip


def may_follow(below: str | None, phase: str | None) -> bool:
    """Whether a revision of `phase` may come right after one of `below`."""
    if below not in ORDER or phase not in ORDER or below == "contract":
        return True
    return ORDER.index(phase) >= ORDER.index(below)
