"""What tampering looks like: a finished sentence for each finding, and a seal beside its rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from leadprotect.audit.seals import joined, listed, numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Verdict = Literal["intact", "tampered", "not judged"]

CHECK = 4
"""Bytes of each row's hash that a seal keeps, to name the row that was changed."""


@dataclass(frozen=True)
class Finding:
    """Evidence of tampering: `what` is a finished sentence, `rows` are numbers of recorded rows."""

    territory: str | None
    seal: int | None
    what: str
    rows: tuple[range, ...] = ()


class KeptSeal(NamedTuple):
    """A seal as it was kept elsewhere: its chain, its place in it, and its hash."""

    territory: str | None
    number: int
    hash: str


def named(thing: str, found: tuple[range, ...]) -> str:
    """``row 3 was`` or ``rows 3, 7-9 were``; a run left something itself."""
    several = sum(map(len, found)) > 1
    verb = "" if thing == "run" else (" were" if several else " was")
    return f"{thing}{'s' if several else ''} {listed(found)}{verb}"


def of_rows(
    territory: str | None, number: int, seal: Mapping[str, Any], found: list[tuple[int, bytes]]
) -> Iterator[Finding]:
    """What is wrong with the rows of a seal: `seal` is its fields by name, `found` number and hash of each row.

    They come in the order of their numbers.
    """
    if hashlib.sha256(b"".join(own for _, own in found)).hexdigest() == seal["content"]:
        return
    sealed = [i for part in numbers(seal["ids"]) for i in part]
    checks = bytes.fromhex(seal["row_checks"])
    check_of = {i: checks[at * CHECK : (at + 1) * CHECK] for at, i in enumerate(sealed)}
    held = [i for i, _ in found]
    wrong = {
        "removed": sorted(check_of.keys() - {*held}),
        "inserted": [i for i in held if i not in check_of],
        "changed": [i for i, own in found if i in check_of and own[:CHECK] != check_of[i]],
    }
    for what, ids in wrong.items():
        if ids:
            ranges = joined(sorted({*ids}))
            yield Finding(territory, number, f"{named('row', ranges)} {what}", ranges)
    if not any(wrong.values()):
        in_order = held == sealed
        what = "its hash does not fit its rows" if in_order else "its rows stand twice or in another order"
        yield Finding(territory, number, what)
