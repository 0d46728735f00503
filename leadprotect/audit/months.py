"""The rows of one month beside the seals that name them; one pass, with the seals in memory that are under way."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice, repeat
from math import inf
from typing import TYPE_CHECKING, Any

from leadprotect.audit import chains
from leadprotect.audit.chains import CLOCK_S
from leadprotect.audit.findings import Finding, named, of_rows
from leadprotect.audit.seals import joined, numbers, transaction_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from leadprotect.audit.chains import SealRun, Span
    from leadprotect.database.drivers import AnyConnection


CHANGED = "the seal itself was changed"


@dataclass(frozen=True)
class Month:
    """`rows` are sealed and as they were, `pending` not sealed yet."""

    rows: int
    pending: int
    findings: tuple[Finding, ...]


class _Step:
    """What is known of the rows that run `at` takes: from `since` on, nothing about their time is strange."""

    def __init__(self, runs: Sequence[SealRun], at: int) -> None:
        self.run, self.runs, self.at = runs[at], runs, at
        before = runs[at - 1] if at else None
        self.here = before is not None and before.origin == self.run.origin
        self.settled = before.settled_until - CLOCK_S if before else -inf
        self.since = max(self.settled, before.sealed_at - CLOCK_S) if before and self.here else self.settled

    def late(self, at: float, text: str) -> bool:
        """Whether a row came into a time which had been sealed before."""
        if at < self.settled:
            return True
        transaction = transaction_of(text)
        return any(
            run.origin == self.run.origin and run.transaction < transaction and at < run.sealed_at - CLOCK_S
            for run in islice(self.runs, self.at)
        )


@dataclass(eq=False)
class _Open:
    """A seal of which rows have come and others may follow."""

    span: Span
    fields: dict[str, Any]
    step: _Step
    ids: tuple[range, ...]
    found: list[tuple[int, bytes]] = field(default_factory=list)
    late: list[int] = field(default_factory=list)


class _Pass:
    """Goes through a month once; `of` maps the number of a row that is still to come to its seal."""

    def __init__(
        self, conn: AnyConnection, territory: str | None, runs: Sequence[SealRun], spans: Iterable[Span], *, gone: bool
    ) -> None:
        self.conn, self.territory, self.runs, self.gone = conn, territory, runs, gone
        self.at = {run.number: at for at, run in enumerate(runs)}
        self.waiting = deque(sorted(spans, key=lambda span: span.low))
        self.open: list[_Open] = []
        self.of: dict[int, _Open] = {}
        self.rows, self.findings = 0, list[Finding]()

    def turn(self, number: float) -> float:
        """Close the seals that end before `number`, and open those that begin; returns where to turn next."""
        while self.waiting and self.waiting[0].low <= number:
            self._opened(self.waiting.popleft())
            # a seal may end before the next one begins
            self._closed(min(number, self.waiting[0].low if self.waiting else number))
        self._closed(number)
        begins = self.waiting[0].low if self.waiting else inf
        return min([begins, *(seal.span.high + 1 for seal in self.open)])

    def _opened(self, span: Span) -> None:
        fields = chains.seal_fields(self.conn, self.territory, span.number)
        if changed(fields, span.hash):
            self.findings.append(Finding(self.territory, span.number, CHANGED))
        ids = numbers(fields["ids"])
        seal = _Open(span, fields, _Step(self.runs, self.at[span.run]), ids)
        for part in ids:
            self.of.update(zip(part, repeat(seal)))
        self.open.append(seal)

    def _closed(self, number: float) -> None:
        for seal in [seal for seal in self.open if seal.span.high < number]:
            self.open.remove(seal)
            for part in seal.ids:
                for i in part:
                    self.of.pop(i, None)
            self._judged(seal)

    def _judged(self, seal: _Open) -> None:
        number = seal.span.number
        self.say_late(number, seal.late)
        if self.gone:
            return
        wrong = list(of_rows(self.territory, number, seal.fields, seal.found))
        self.findings += wrong
        self.rows += 0 if wrong else len(seal.found)

    def say_late(self, number: int | None, late: list[int]) -> None:
        """Evidence of rows that came too late."""
        if late:
            ranges = joined(sorted({*late}))
            what = f"{named('row', ranges)} inserted into a time that was sealed before"
            self.findings.append(Finding(self.territory, number, what, ranges))


def changed(fields: dict[str, Any], own: str) -> bool:
    """Whether a seal with these fields would have another hash than its `own`."""
    return bool(fields["computed"] != own)


def judged(
    conn: AnyConnection,
    territory: str | None,
    month: str,
    runs: Sequence[SealRun],
    spans: Iterable[Span],
    *,
    gone: bool,
) -> Month:
    """Compare the rows of a month with its seals, which `spans` name; `runs` as `chains.runs` gives them.

    Of a month that is `gone`, nothing is missed. A seal is in memory from its first row to its last.
    """
    way = _Pass(conn, territory, runs, spans, gone=gone)
    newest, of, to_come = runs[-2] if len(runs) > 1 else None, way.of, _Step(runs, len(runs) - 1)
    turn, pending, late = -inf, 0, list[int]()
    for number, at, over, text in chains.recorded_rows(conn, territory, month, newest.snapshot if newest else None):
        if number >= turn:
            turn = way.turn(number)
        seal = of.get(number)
        if seal is not None:
            seal.found.append((number, sha256(text.encode()).digest()))
            if at < seal.step.since and seal.step.late(at, text):
                seal.late.append(number)
        elif newest and ((over and to_come.here) or (at < to_come.since and to_come.late(at, text))):
            late.append(number)
        else:
            pending += 1
    way.turn(inf)
    way.say_late(None, late)
    return Month(way.rows, pending, tuple(way.findings))
