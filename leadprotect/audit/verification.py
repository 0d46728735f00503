"""Was anything recorded changed since it was sealed? Compares the audit with its seals."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf
from typing import TYPE_CHECKING

from leadprotect.access.context import declaring
from leadprotect.audit import chains
from leadprotect.audit.chains import Span
from leadprotect.audit.findings import Finding, KeptSeal, Verdict, named
from leadprotect.audit.months import CHANGED, changed, judged
from leadprotect.audit.reach import reach
from leadprotect.database.statements import own_names, rows
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from datetime import date

    from leadprotect.audit.chains import Entry
    from leadprotect.database.drivers import AnyConnection

_BEGINS = "leadprotect denial "
_VALUE = r"(?:NULL| ?E?'(?:[^']|''){0,9999}+')"  # as quote_nullable() writes what was declared; it can't be left early
_LOGIN = r'(?:\w+|"(?:[^"]|"")++")'
DENIAL = re.compile(
    rf"{_BEGINS}(\d{{1,18}}): (lead {_VALUE}, action \w+, reason \w+, user {_VALUE}, territory {_VALUE}, "
    rf"login {_LOGIN}, correlation {_VALUE}, note {_VALUE}), proof ([0-9a-f]{{32}})"
)
"""The line that a denial leaves in the server's log: its number, its facts, and the proof that it is ours."""

_LINES = 1000  # of a log, asked about at once


@dataclass(frozen=True)
class Chain:
    """What was found in one chain; `territory` is None for the rows without one.

    A chain is not judged when the login may not read it, and then nothing else is said of it. `last_run`
    is the newest run that left a seal in it, `rows` counts sealed rows that are as they were,
    `pending` those that the next run will seal; `retired` maps a detached month (``2026-01``) to the
    table that held it and is gone.
    """

    territory: str | None
    verdict: Verdict
    seals: int = 0
    head: str | None = None
    last_run: int | None = None
    rows: int = 0
    pending: int = 0
    retired: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Verification:
    """`gaps` are numbers that were drawn and have no row; `explained` more of them stand in the log.

    `since` is the first month that was looked at, `until` the one before which it ended; None: no end.
    """

    chains: tuple[Chain, ...]
    gaps: tuple[range, ...]
    explained: int
    since: date | None = None
    until: date | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Whatever was tampered with, of all chains."""
        return tuple(finding for chain in self.chains for finding in chain.findings)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Territories that this login may not read, and of which nothing is known therefore."""
        return tuple(chain.territory or "" for chain in self.chains if chain.verdict == "not judged")

    @property
    def verdict(self) -> Verdict:
        """Tampered if any chain is; intact only if every chain was judged. A gap is no tampering."""
        verdicts = {chain.verdict for chain in self.chains}
        return "tampered" if "tampered" in verdicts else "not judged" if "not judged" in verdicts else "intact"

    @property
    def intact(self) -> bool:
        """Whether every chain was judged, and nothing was tampered with."""
        return self.verdict == "intact"


def verify_audit(
    conn: AnyConnection,
    *,
    known: Iterable[KeptSeal] = (),
    log: Iterable[str] = (),
    territories: Collection[str] | None = None,
    since: date | None = None,
    until: date | None = None,
) -> Verification:
    """Compare every row and every seal that the login may read with each other, in constant memory.

    For auditors, in a transaction. `known` are seals that were kept elsewhere (`anchors.kept` and
    `proof.known_seals` read them): only this shows that the end of all chains was cut off, or that they
    were made anew. `log` holds lines of the server's log: those that our function wrote in this database
    explain gaps. `territories` asks for these alone ('': for rows without one); else for all that there
    are. `since` and `until` (UTC) ask for the rows and the gaps of the months from the one to before the other: of the
    others the seals are read, and that each continues the one before it. Rows are hashed here, not in the database.
    Raises `ContextMissing` in autocommit, `InvalidRequest` for an unknown territory, `ProtectionUnavailable` for other
    logins.
    """
    months = _Months(since and since.replace(day=1), until and until.replace(day=1))
    with own_names(conn):
        return _verified(conn, {*known}, log, territories, months)


@dataclass(frozen=True)
class _Months:
    """The months that are asked for, each by its first day."""

    since: date | None
    until: date | None

    def holds(self, month: str) -> bool:
        """Whether a month is one of them, as the server writes its first day."""
        at = _counted(month)
        low = _counted(self.since.isoformat()) if self.since else -inf
        return low <= at and (self.until is None or at < _counted(self.until.isoformat()))


def _counted(month: str) -> float:
    """The number of a month, in order; the server knows years that no `date` has, and infinite times."""
    if month.endswith("infinity"):
        return float(month)
    year, number, rest = month.split("-")
    return (1 - int(year) if rest.endswith(" BC") else int(year)) * 12 + int(number)


def _verified(
    conn: AnyConnection, known: set[KeptSeal], log: Iterable[str], territories: Collection[str] | None, asked: _Months
) -> Verification:
    readable, closed = _asked(conn, known, territories)
    found = [Chain(code, "not judged") for code in closed]
    newest = 0  # what is sealed while this looks is for the next one
    for code in readable:
        with declaring(conn, "", code or ""):
            newest = max(newest, chains.newest_run(conn))
    for code in readable:
        with declaring(conn, "", code or ""):
            found.append(_chain(conn, code, newest, [one for one in known if one.territory == code], asked))
    found.sort(key=lambda chain: (chain.territory is not None, chain.territory or ""))
    query = render("SELECT * FROM {schema}.audit_number_gaps(%s::date, %s::date)", current())
    drawn = [range(low, high + 1) for low, high in rows(conn, query, (asked.since, asked.until))]
    told = sorted(_told(conn, log))
    gaps = tuple(part for gap in drawn for part in _without(gap, told))
    explained = sum(map(len, drawn)) - sum(map(len, gaps))
    return Verification(tuple(_of_same_runs(found)), gaps, explained, asked.since, asked.until)


def _asked(
    conn: AnyConnection, known: set[KeptSeal], territories: Collection[str] | None
) -> tuple[list[str | None], list[str]]:
    """Chains that can be read, and territories that can't; what was kept elsewhere may name one that is gone."""
    here = reach(conn, territories)
    if territories is not None:
        return [*here.inside], [*here.left_out]
    listed = {*here.inside, *here.left_out}
    unlisted = {one.territory for one in known} - listed
    if here.unbound:
        sealed = rows(conn, render("SELECT DISTINCT territory FROM {schema}.lead_access_audit_seals", current()))
        unlisted |= {code for (code,) in sealed} - listed
    member = render("SELECT {schema}.is_member(%s::text)", current())
    closed = [code for code in unlisted if code and not here.unbound and not rows(conn, member, (code,))[0][0]]
    return [*here.inside, *(unlisted - {*closed})], [*here.left_out, *closed]


def _told(conn: AnyConnection, log: Iterable[str]) -> Iterator[int]:
    """Numbers of the denials that our function told the log; any login can write a line that looks the same."""
    call = render("SELECT * FROM {schema}.proved_denials(%s::bigint[], %s::text[], %s::text[])", current())
    found = (match for line in log for match in _as_written(line))
    while part := list(islice(found, _LINES)):
        numbers, facts, proofs = zip(*(match.groups() for match in part), strict=True)
        yield from (number for (number,) in rows(conn, call, ([*map(int, numbers)], list(facts), list(proofs))))


def _as_written(line: str) -> Iterator[re.Match[str]]:
    """The line, also without the quoting of a log in CSV or JSON.

    Wherever it begins: the name of an application, which a login chooses, may look like the begin of one before it.
    """
    for text in {line, line.replace('""', '"'), line.replace('\\"', '"').replace("\\\\", "\\")}:
        at = text.find(_BEGINS)
        while at >= 0:
            if match := DENIAL.match(text, at):
                yield match
            at = text.find(_BEGINS, at + 1)


@dataclass
class _Links:
    """A chain while it is read link by link; `detached` maps a month to the table that was detached with it.

    `spans` are the seals of each month that have rows; their own hash is computed with their rows.
    """

    conn: AnyConnection
    territory: str | None
    kept: dict[int, set[str]]
    last: Entry | None = None
    last_run: int | None = None
    seals: int = 0
    detached: dict[str, str] = field(default_factory=dict)
    spans: dict[str, list[Span]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Compare it with the link before it, with itself, and with what was kept elsewhere."""
        expected = self.last.number + 1 if self.last else 1
        if entry.number != expected:
            self._say(entry, f"{named('seal', (range(expected, entry.number),))} removed before it")
        elif entry.previous != (self.last.hash if self.last else None):
            self._say(entry, "does not continue the seal before it")
        if entry.sized and entry.detached_table is None and entry.low is not None and entry.high is not None:
            span = Span(entry.number, entry.run, entry.low, entry.high, entry.hash)
            self.spans.setdefault(entry.month, []).append(span)
        elif not entry.sized or changed(chains.seal_fields(self.conn, self.territory, entry.number), entry.hash):
            self._say(entry, CHANGED)
        if self.kept.pop(entry.number, {entry.hash}) != {entry.hash}:
            self._say(entry, "this seal is not the one that was kept elsewhere")
        if entry.detached_table is None:
            self.last_run = entry.run
        else:
            self.detached[entry.month] = entry.detached_table
        self.last, self.seals = entry, self.seals + 1

    def end(self) -> None:
        """What was kept elsewhere and did not come."""
        for number in sorted(self.kept):
            self.findings.append(Finding(self.territory, number, "this seal was kept elsewhere, and is gone"))

    def _say(self, entry: Entry, what: str) -> None:
        self.findings.append(Finding(self.territory, entry.number, what))


def _chain(conn: AnyConnection, territory: str | None, newest: int, known: Iterable[KeptSeal], asked: _Months) -> Chain:
    kept: dict[int, set[str]] = {}
    for one in known:
        kept.setdefault(one.number, set()).add(one.hash)
    links = _Links(conn, territory, kept)
    for entry in chains.entries(conn, territory, newest):
        links.add(entry)
    links.end()
    here = {*chains.detached_tables(conn)}
    retired = {month: table for month, table in links.detached.items() if table not in here}
    runs = chains.runs(conn, territory, newest)
    there = {*chains.months(conn, territory), *links.spans, *links.detached}
    months = sorted(month for month in there if asked.holds(month))
    found = [judged(conn, territory, m, runs, links.spans.get(m, ()), gone=m in retired) for m in months]
    findings = [*links.findings, *(finding for month in found for finding in month.findings)]
    return Chain(
        territory,
        "tampered" if findings else "intact",
        links.seals,
        links.last.hash if links.last else None,
        links.last_run,
        sum(month.rows for month in found),
        sum(month.pending for month in found),
        {month[:7]: table for month, table in retired.items()},
        tuple(sorted(findings, key=lambda finding: finding.seal or 0)),
    )


def _of_same_runs(chains: Collection[Chain]) -> Iterator[Chain]:
    """Every run seals every chain, so a chain that lacks the newest runs of another lost its end."""
    newest = max((chain.last_run or 0 for chain in chains), default=0)
    for chain in chains:
        # a territory that was added since has no seal yet; rows without one are sealed from the first run on
        last = chain.last_run or (newest if chain.territory else 0)
        if (missing := range(last + 1, newest + 1)) and chain.verdict != "not judged":
            what = f"{named('run', (missing,))} left no seal here, but in another chain: the newest seals were removed"
            finding = Finding(chain.territory, None, what)
            yield replace(chain, verdict="tampered", findings=(*chain.findings, finding))
        else:
            yield chain


def _without(gap: range, told: Iterable[int]) -> Iterator[range]:
    low = gap.start
    for number in told:
        if number in gap:
            if number > low:
                yield range(low, number)
            low = number + 1
    if low < gap.stop:
        yield range(low, gap.stop)
