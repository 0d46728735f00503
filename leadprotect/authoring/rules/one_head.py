"""One chain: one head, one base, and every predecessor is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect.authoring.finding import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.authoring.chain import RevisionChain


def one_head(chain: RevisionChain) -> Iterator[Problem]:
    """Two heads stop every deploy, and a gap leaves revisions that nothing ever runs.

    Source: https://alembic.sqlalchemy.org/en/latest/branches.html
    """
    for one in chain.revisions:
        for below in one.below:
            if chain.get(below) is None and below not in chain.others:
                yield Problem(
                    "one-head", one.file, one.line("down_revision"),
                    f"it names {below} as its predecessor, and there is no such revision: the chain has a gap",
                    "name the one it follows in down_revision",
                )  # fmt: skip
        if len(one.below) > 1:
            yield Problem(
                "one-head", one.file, one.line("down_revision"),
                f"it merges {' and '.join(one.below)}, and phases have an order that a merge does not tell",
                "delete it and put one branch behind the other: leadprotect new --rebase",
            )  # fmt: skip
    for one in sorted(chain.heads, key=lambda head: head.file.name)[1:]:
        first = min(chain.heads, key=lambda head: head.file.name)
        yield Problem(
            "one-head", one.file, one.line("down_revision"),
            f"{first.id} and {one.id} are both heads: nothing tells which comes first",
            "put the newer one behind the other: leadprotect new --rebase",
        )  # fmt: skip
