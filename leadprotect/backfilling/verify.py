"""The truth about a backfill, derived again from the data; and what one would do, without writing."""

from __future__ import annotations

import csv
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadprotect.backfilled import Estimate, Verified
from leadprotect.backfilling.jobs import check_known, known_territories
from leadprotect.backfilling.ready import check_settings, missing_index
from leadprotect.database.catalog import relation
from leadprotect.database.drivers import driver_connection
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.database.statements import row, rows
from leadprotect.errors import InvalidRequest
from leadprotect.preflight.host_tables import check_visible
from leadprotect.settings import Settings, current, render
from leadprotect.settings.sources import suffix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadprotect.database.drivers import AnyConnection

NAMED = 20
"""So many leads are named; `report` lists them all."""

SAMPLE = 2000
"""Leads that a dry run looks at in each territory."""

# measured by `leadprotect bench backfill`, see docs/benchmarks: what one assignment costs to write
_WRITE_S = 6e-6
_READ_S = 8e-6
_WAL_BYTES = 550


def verify_owners(
    conn: AnyConnection, territories: Sequence[str], *, settings: Settings | None = None
) -> list[Verified]:
    """Derive every owner of `territories` again, by the query that the gate of contract asks; reads only.

    After contract activities make no owners any more: missing ones are looked for, and those whom the lead's own
    column does not name, where there is an `owner_column`.
    Raises `InvalidRequest` for a territory that is not in the database, and for settings that are not
    those of the migration.
    """
    s = settings or current()
    _check(conn, territories, s)
    deep = derived(conn, s)
    return counted(conn, territories, s, deep=deep, stepped=not deep and _in_step(conn, s))


def report_ownerless(
    conn: AnyConnection, territories: Sequence[str], file: Path, *, settings: Settings | None = None
) -> int:
    """Write every lead without an owner, with territory and reason, to `file` (CSV); returns the rows.

    Reasons: no_qualifying_activity, released, locked, missing, no_territory. The file appears only
    when it is complete. Raises as `verify` does, and `InvalidRequest` for a folder that can't be written to.
    """
    s = settings or current()
    _check(conn, territories, s)
    if problem := folder_problem(file):
        raise InvalidRequest(problem)
    query = render("SELECT lead_id, territory, reason FROM {schema}.backfill_report(%s)", s)
    handle, name = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.", text=True)
    written = 0
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as out, mapped_errors():
            lines = csv.writer(out)
            lines.writerow(("lead_id", "territory", "reason"))
            # row by row: the list may be longer than the memory
            for found in driver_connection(conn).cursor().stream(query, (list(territories),)):  # type: ignore[union-attr]
                lines.writerow(found)
                written += 1
        Path(name).chmod(0o644)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return written


def folder_problem(file: Path) -> str | None:
    """Why no file can be made where `file` shall be, or None."""
    folder = file.absolute().parent
    if not folder.is_dir():
        return f"folder {folder} does not exist"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"folder {folder} can't be written to"


def estimate_backfill(
    conn: AnyConnection, territories: Sequence[str], *, settings: Settings | None = None
) -> list[Estimate]:
    """Say what a backfill of `territories` would do, from a sample; writes nothing.

    Raises `InvalidRequest` for a territory that is not in the database.
    """
    s = settings or current()
    _check(conn, territories, s)
    return [_estimate(conn, code, s) for code in territories]


def most_of(territory: str, leads: int, assignable: int) -> Estimate:
    """What a backfill would do at most, from counts alone: before the migrate step nothing takes a sample."""
    seconds = leads * _READ_S + assignable * _WRITE_S
    return Estimate(territory, leads, 0, assignable, leads - assignable, seconds, assignable * _WAL_BYTES)


def derived(conn: AnyConnection, s: Settings) -> bool:
    """Whether activities make owners here: the transition is on, and its index stands."""
    return missing_index(conn, s) is None and all(_standing(conn, s))


def _in_step(conn: AnyConnection, s: Settings) -> bool:
    """Whether contract made the lead's own column and the owner one, whatever became of our trigger since."""
    return bool(s.owner_column) and s.host_rls != "off" and not any(_standing(conn, s))


def _standing(conn: AnyConnection, s: Settings) -> list[bool]:
    """Of each trigger that makes owners, whether it stands; an operator may not enter the schema of its table."""
    triggers = [(one.stands_on, s.role(f"transition{suffix(one)}")) for one in s.activities]
    if s.owner_column:
        triggers.append((s.leads_table, s.role("own_named")))
    query = "SELECT FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid = %s::pg_catalog.oid AND t.tgname = %s"
    return [bool(rows(conn, query, (relation(conn, *host.split(".", 1)), name))) for host, name in triggers]


def _check(conn: AnyConnection, territories: Sequence[str], s: Settings) -> None:
    if isinstance(territories, str):
        message = "territories must be a list of codes, not one text"
        raise InvalidRequest(message)
    check_known(territories, known_territories(conn, s))
    check_settings(conn, s)
    check_visible(conn, s)


def counted(
    conn: AnyConnection, territories: Sequence[str], s: Settings, *, deep: bool, stepped: bool = False
) -> list[Verified]:
    """The counts of `territories`, in their order; `deep` derives the owners, `stepped` reads their column."""
    query = render("SELECT territory, ownerless, missing, released FROM {schema}.backfill_counts(%s)", s)
    of = {code: counts for code, *counts in rows(conn, query, (list(territories),))}
    verified = []
    for code in territories:
        ownerless, missing, released = of[code]
        # most often none is missing, and the leads need not be looked for a second time
        missing_leads = _named(conn, render("{schema}.unowned_leads(%s)", s), code)[1] if missing else ()
        stale, stale_leads = _named(conn, render("{schema}.backfill_stale(%s)", s), code) if deep else (0, ())
        differs = render("(SELECT d.lead_id FROM {schema}.owner_column_differs(%s) AS d)", s)
        differing, differing_leads = _named(conn, differs, code) if stepped else (0, ())
        found = (ownerless, released, missing, stale, missing_leads, stale_leads, differing, differing_leads)
        verified.append(Verified(code, *found))
    return verified


def _named(conn: AnyConnection, function: str, code: str) -> tuple[int, tuple[Any, ...]]:
    found = rows(
        conn, f"SELECT count(*) OVER (), lead FROM {function} AS of (lead) ORDER BY lead LIMIT {NAMED}", (code,)
    )
    return (found[0][0] if found else 0), tuple(lead for _, lead in found)


def _estimate(conn: AnyConnection, code: str, s: Settings) -> Estimate:
    began = time.perf_counter()
    query = render("SELECT leads, sampled, assignable, ownerless FROM {schema}.backfill_sample(%s, %s)", s)
    leads, sampled, assignable, ownerless = row(conn, query, (code, SAMPLE))
    reading = (time.perf_counter() - began) / max(sampled, 1)
    scale = leads / max(sampled, 1)
    assigned = round(assignable * scale)
    seconds = leads * reading + assigned * _WRITE_S
    return Estimate(code, leads, sampled, assigned, round(ownerless * scale), seconds, assigned * _WAL_BYTES)
