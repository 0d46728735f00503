"""Was anything recorded changed since it was sealed? Compares the audit with its seals."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from leadprotect.access.context import declaring
from leadprotect.audit import chains
from leadprotect.audit.seals import joined, listed
from leadprotect.database.connection import own_names, rows
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from leadprotect.audit.chains import Entry
    from leadprotect.database.connection import AnyConnection

DENIAL = re.compile(r"leadprotect denial (\d{1,18}): (.*), proof ([0-9a-f]{32})")
"""The line that a denial leaves in the server's log: its number, its facts, and the proof that it is ours."""

_LINES = 1000  # of a log, asked about at once


@dataclass(frozen=True)
class Finding:
    """Evidence of tampering: `what` is a finished sentence, `rows` are numbers of recorded rows."""

    territory: str | None
    seal: int | None
    what: str
    rows: tuple[range, ...] = ()


@dataclass(frozen=True)
class Chain:
    """What was found in one chain; `territory` is None for the rows without one.

    `runs` are those that left a seal in it, `rows` counts sealed rows that are as they were,
    `pending` those that the next run will seal; `retired` maps a detached month (``2026-01``) to the
    table that held it and is gone.
    """

    territory: str | None
    seals: int
    head: str | None
    runs: tuple[int, ...]
    rows: int
    pending: int
    retired: dict[str, str]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Verification:
    """`gaps` are numbers that were drawn and have no row; `explained` more of them stand in the log.

    `unchecked` names the territories that this login may not read.
    """

    chains: tuple[Chain, ...]
    gaps: tuple[range, ...]
    explained: int
    unchecked: tuple[str, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Whatever was tampered with, of all chains."""
        return tuple(finding for chain in self.chains for finding in chain.findings)

    @property
    def intact(self) -> bool:
        """Whether nothing was tampered with; a gap is no tampering."""
        return not self.findings


def verify_audit(
    conn: AnyConnection, *, known: Mapping[tuple[str | None, int], str] | None = None, log: Iterable[str] = ()
) -> Verification:
    """Compare every row and every seal that the login may read with each other.

    For auditors, in a transaction. `known` maps territory and number of a seal to the hash that was
    kept elsewhere (`proof.known_seals` reads them from an export): only this shows that the end of all
    chains was cut off, or that they were made anew. `log` holds lines of the server's log: those that
    our function wrote in this database explain gaps. Raises `ContextMissing` in autocommit,
    `ProtectionUnavailable` for other logins.
    """
    with own_names(conn):
        return _verified(conn, known or {}, log)


def _verified(conn: AnyConnection, known: Mapping[tuple[str | None, int], str], log: Iterable[str]) -> Verification:
    s = current()
    codes = rows(conn, render("SELECT code, {schema}.is_member(code) FROM {schema}.territories ORDER BY code", s))
    readable: list[str | None] = [None, *(code for code, member in codes if member)]
    unchecked = [code for code, member in codes if not member]
    chains = []
    for code in readable:
        with declaring(conn, "", code or ""):
            chains.append(_chain(conn, code, known))
    # whom no policy binds sees chains of territories that are no longer listed, too
    for (code,) in rows(conn, render("SELECT DISTINCT territory FROM {schema}.lead_access_audit_seals", s)):
        if code not in (chain.territory for chain in chains):
            chains.append(_chain(conn, code, known))
    drawn = [range(low, high + 1) for low, high in rows(conn, render("SELECT * FROM {schema}.audit_number_gaps()", s))]
    told = sorted(_told(conn, log))
    gaps = tuple(part for gap in drawn for part in _without(gap, told))
    explained = sum(map(len, drawn)) - sum(map(len, gaps))
    return Verification(tuple(_of_same_runs(chains)), gaps, explained, tuple(unchecked))


def _told(conn: AnyConnection, log: Iterable[str]) -> Iterator[int]:
    """Numbers of the denials that our function told the log; any login can write a line that looks the same."""
    call = render("SELECT * FROM {schema}.proved_denials(%s::bigint[], %s::text[], %s::text[])", current())
    found = (match for line in log for match in _as_written(line))
    while part := list(islice(found, _LINES)):
        numbers, facts, proofs = zip(*(match.groups() for match in part), strict=True)
        yield from (number for (number,) in rows(conn, call, ([*map(int, numbers)], list(facts), list(proofs))))


def _as_written(line: str) -> Iterator[re.Match[str]]:
    """The line, also without the quoting of a log in CSV or JSON."""
    for text in {line, line.replace('""', '"'), line.replace('\\"', '"').replace("\\\\", "\\")}:
        if match := DENIAL.search(text):
            yield match


def links(entries: Iterable[Entry], territory: str | None) -> Iterator[Finding]:
    """What is wrong with the links of a chain, whatever the rows are."""
    before: Entry | None = None
    for entry in entries:
        expected = before.number + 1 if before else 1
        if entry.number != expected:
            gone = range(expected, entry.number)
            yield Finding(territory, entry.number, f"{named('seal', (gone,))} removed before it")
        elif entry.previous != (before.hash if before else None):
            yield Finding(territory, entry.number, "does not continue the seal before it")
        if entry.hash != entry.computed or not entry.sized:
            yield Finding(territory, entry.number, "the seal itself was changed")
        before = entry


def _chain(conn: AnyConnection, territory: str | None, known: Mapping[tuple[str | None, int], str]) -> Chain:
    entries = chains.entries(conn, territory)
    findings = [*links(entries, territory), *_kept_elsewhere(entries, territory, known)]
    here = set(chains.detached_tables(conn))
    retired = {
        entry.month: entry.detached_table
        for entry in entries
        if entry.detached_table is not None and entry.detached_table not in here
    }
    intact, pending = 0, 0
    for name in chains.months(conn, territory):
        for part in chains.month(conn, territory, name):
            if part.number is None:
                pending += part.found - sum(map(len, part.late))
            elif part.matches and not part.removed:
                intact += part.found
            if part.late:
                what = f"{named('row', part.late)} inserted into a time that was sealed before"
                findings.append(Finding(territory, part.number, what, part.late))
            if part.number is not None and name not in retired:
                findings += _content(conn, territory, part)
    return Chain(
        territory,
        len(entries),
        entries[-1].hash if entries else None,
        tuple(sorted({entry.run for entry in entries if entry.detached_table is None})),
        intact,
        pending,
        {name[:7]: table for name, table in retired.items()},
        tuple(sorted(findings, key=lambda finding: finding.seal or 0)),
    )


def _content(conn: AnyConnection, territory: str | None, part: chains.Month) -> Iterator[Finding]:
    if part.removed:
        yield Finding(territory, part.number, f"{named('row', part.removed)} removed", part.removed)
    if not part.matches and part.number is not None:
        moved = {number for gone in part.removed for number in gone}  # to another month: told already
        differing = chains.changed(conn, territory, part.number)
        changed = joined([number for found in differing for number in found if number not in moved])
        if changed:
            yield Finding(territory, part.number, f"{named('row', changed)} changed", changed)
        elif not part.removed:
            yield Finding(territory, part.number, "its hash does not fit its rows")


def _kept_elsewhere(
    entries: Iterable[Entry], territory: str | None, known: Mapping[tuple[str | None, int], str]
) -> Iterator[Finding]:
    stored = {entry.number: entry.hash for entry in entries}
    for (code, number), kept in known.items():
        if code == territory and stored.get(number) != kept:
            fate = "is not the one that was kept elsewhere" if number in stored else "was kept elsewhere, and is gone"
            yield Finding(territory, number, f"this seal {fate}")


def _of_same_runs(chains: Collection[Chain]) -> Iterator[Chain]:
    """Every run seals every chain, so a chain that lacks the newest runs of another lost its end."""
    newest = max((run for chain in chains for run in chain.runs), default=0)
    for chain in chains:
        # a territory that was added since has no seal yet; rows without one are sealed from the first run on
        last = chain.runs[-1] if chain.runs else newest if chain.territory else 0
        if missing := range(last + 1, newest + 1):
            what = f"{named('run', (missing,))} left no seal here, but in another chain: the newest seals were removed"
            yield replace(chain, findings=(*chain.findings, Finding(chain.territory, None, what)))
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


def named(thing: str, found: tuple[range, ...]) -> str:
    """``row 3 was`` or ``rows 3, 7-9 were``; a run left something itself."""
    several = sum(map(len, found)) > 1
    verb = "" if thing == "run" else (" were" if several else " was")
    return f"{thing}{'s' if several else ''} {listed(found)}{verb}"
