"""Takes our holds off the host's tables for a change that they refuse, and puts them back: closed in between.

Two transactions, with the host's command between them, and the lock of migrations around all of it. The first
undoes every revision, so that our tables wait in the quarantine, and puts a policy on the leads that lets in
whom ours do not bind, and nobody else. The second applies the revisions again, with the settings of then. The
version table keeps saying what is to stand again, and tells a killed run from a rollback.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect import phases
from leadprotect.backfilling.jobs import pause_backfill
from leadprotect.database.catalog import one, relation
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.errors import InvalidRequest, RollbackError
from leadprotect.migration import steps, undo, undoing
from leadprotect.migration.rollback import alembic_config
from leadprotect.preflight import check, standing
from leadprotect.preflight.applied import differences, made_with
from leadprotect.preflight.columns import in_text
from leadprotect.preflight.host_tables import host
from leadprotect.preflight.version_table import revision
from leadprotect.preflight.way_down import check_way_down
from leadprotect.processes import Started
from leadprotect.settings import Settings, ident, literal, load, render, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg
    from alembic.config import Config

# the gate, and what a script asks of a table before it builds an index, which is not built here
_ASKS = re.compile(r"SELECT\s+\S+\.require_open_gate\(|is partitioned: a script can''t build its index")
_FLAGS = """
    SELECT json_build_object('enabled', relrowsecurity, 'forced', relforcerowsecurity)::text
    FROM pg_catalog.pg_class WHERE oid = %s
    """
_KEPT = """
    SELECT polrelid::regclass::text, pg_catalog.obj_description(oid, 'pg_policy') FROM pg_catalog.pg_policy
    WHERE polname = %s
    """


_NO_PROGRAM = 127
"""As a shell says that there is no such program."""


@dataclass(frozen=True)
class Changed:
    """The revision that stands again, what the command returned, and whether a killed run was resumed."""

    revision: str
    returned: int | None
    resumed: bool


def host_change(
    command: Sequence[str] = (),
    *,
    config: Config | None = None,
    lock_budget: str | None = None,
    tell: Callable[[str], None] = print,
) -> Changed:
    """Run `command` without a hold of ours on the host's tables; without one, only put back what a killed run took.

    The settings are read again after the command, which may write other names into the ini file. Where it fails
    everything is put back all the same. Raises `InvalidRequest` where nothing is applied, or a setting waits for
    `leadprotect apply`, `PreflightError` where a way is barred, `RollbackError` where the holds could not be put
    back: the leads stay closed then, and the same call goes on.
    """
    alembic = config or alembic_config()
    s = load(alembic)
    with mapped_errors(), steps.in_steps(s, lock_budget=lock_budget) as at:
        check.check_server(at.guard)
        s = in_text(at.guard, s)
        head = revision(at.guard, s)
        if head is None or head not in phases.chain():
            raise InvalidRequest(f"{head or 'nothing'} is applied: there is no hold of this version to take away")
        away = standing.taken_away(at.guard, s)
        # names of lead_tables change with the host; anything else is to be asked for by the gate
        pending = [str(one) for one in differences(at.guard, s) if one.key != "lead_tables"]
        if pending and not away:
            raise InvalidRequest(f"{', '.join(pending)}; nothing was taken away; first run: leadprotect apply")
        try:
            if not away:
                _take(at, alembic, s, head)
                tell("taken away: the tables of the host are free, and the leads are closed")
            returned = run_for_host(command) if command else None
            again = config or alembic_config()  # one of Alembic's reads its file once
            _put_back(at, again, load(again), head)
        except KeyboardInterrupt:
            if standing.taken_away(at.guard, s):
                tell("stopped; everything is put back first")
                again = config or alembic_config()
                _put_back(at, again, load(again), head)
            raise
    tell(f"put back: {head} stands again")
    return Changed(head, returned, away)


def run_for_host(command: Sequence[str]) -> int:
    """The host's own migration, on connections of its own; ended where we are stopped."""
    try:
        with Started(command, patience=None) as process:  # what the operator has typed
            return process.wait()
    except OSError:
        return _NO_PROGRAM


def _take(at: steps.Steps, config: Config, s: Settings, head: str) -> None:
    made = made_with(at.guard, s) or s
    names = tuple(reversed(phases.through(head)))
    statements = _inside(undoing.of(config, made, names, "downgrade", as_sql=True, destination_rev="base"))
    check_way_down(at.guard, made, ";\n".join(statements))
    pause_backfill(at.guard, s, "leadprotect host-change")
    enforced = relation(at.guard, s.schema, "host_row_security") is not None and made.host_rls != "off"

    def work(conn: psycopg.Connection[Any]) -> None:
        for statement in statements:
            conn.execute(statement.encode())
        for name in (made.leads_table, *(child.table for child in made.lead_tables)) if enforced else ():
            _close(conn, made, name)

    at.step(work)


def _inside(statements: list[str]) -> list[str]:
    """Without what runs outside of a transaction, the indexes, which hold nothing; and without the gate."""
    kept, inside = [], True
    for statement in statements:
        if statement in ("COMMIT", "BEGIN"):
            inside = statement == "BEGIN"
        elif inside and not _ASKS.search(statement):
            kept.append(statement)
    return kept


def _close(conn: psycopg.Connection[Any], s: Settings, name: str) -> None:
    """Nobody gets in but whom our policies do not bind; what the flags were is remembered beside it."""
    closed, rows, host_table = ident(s.role("closed")), ident(s.role("closed_rows")), table(name)
    flags = str(one(conn, _FLAGS, relation(conn, *name.split(".", 1))))
    unbound = render("(SELECT current_user = ANY (ARRAY[{unbound}]::name[]))", s)
    conn.execute(f"CREATE POLICY {closed} ON {host_table} AS RESTRICTIVE USING ({unbound})".encode())
    conn.execute(f"COMMENT ON POLICY {closed} ON {host_table} IS {literal(flags)}".encode())
    if not json.loads(flags)["enabled"]:
        conn.execute(f"CREATE POLICY {rows} ON {host_table} USING (true)".encode())
        conn.execute(f"ALTER TABLE {host_table} ENABLE ROW LEVEL SECURITY".encode())
    if s.host_rls == "force":
        conn.execute(f"ALTER TABLE {host_table} FORCE ROW LEVEL SECURITY".encode())


def _open(conn: psycopg.Connection[Any], s: Settings) -> None:
    """Tables as they were before contract: in the transaction in which contract closes them again."""
    for host_table, kept in conn.execute(_KEPT, (s.role("closed"),)).fetchall():
        flags = json.loads(kept)
        conn.execute(f"DROP POLICY {ident(s.role('closed'))} ON {host_table}".encode())
        conn.execute(f"DROP POLICY IF EXISTS {ident(s.role('closed_rows'))} ON {host_table}".encode())
        if not flags["enabled"]:
            conn.execute(f"ALTER TABLE {host_table} DISABLE ROW LEVEL SECURITY".encode())
        if not flags["forced"]:
            conn.execute(f"ALTER TABLE {host_table} NO FORCE ROW LEVEL SECURITY".encode())


def _put_back(at: steps.Steps, config: Config, s: Settings, head: str) -> None:
    s = in_text(at.guard, s)
    names = phases.through(head)
    again = "correct the settings or the table, and run: leadprotect host-change --resume"
    if problems := host(at.guard, s):
        raise RollbackError(f"{'; '.join(problems)}. The holds are not back, and the leads are closed: {again}")
    statements = _inside(undoing.of(config, s, names, "upgrade", as_sql=True, destination_rev=head))
    left = [_left(config, s, name) for name in names]

    def work(conn: psycopg.Connection[Any]) -> None:
        _open(conn, s)
        for statement in statements:
            conn.execute(statement.encode())
        for kept in left:
            conn.execute(undo.keeping(kept, s).encode())
        if lacking := standing.lacking(conn, s, names):
            raise RollbackError(f"the database lacks {', '.join(lacking)}. The leads are closed: {again}")

    at.step(work)


def _left(config: Config, s: Settings, name: str) -> undo.Undo:
    script = undoing.script_of(config, name)
    statements = undoing.of(config, s, [name], "downgrade", as_sql=True, destination_rev=name)
    locks = script.module.locks["downgrade"]
    return undo.Undo(name, script.down_revision, tuple(filter(None, statements)), locks)
