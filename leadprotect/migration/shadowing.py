"""Puts the triggers of a shadow on the tables of the host, and takes them away: one short step for each table."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import relation
from leadprotect.database.memberships import grants
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.database.statements import rows
from leadprotect.errors import InvalidRequest
from leadprotect.migration import steps
from leadprotect.migration.rollback import alembic_config
from leadprotect.migration.shadow import Shadow, fold, foreseeable, shadow, standing, wanted_triggers, watched
from leadprotect.preflight import check
from leadprotect.preflight.columns import in_text
from leadprotect.preflight.names_taken import taken_triggers
from leadprotect.settings import LeadTable, Settings, ident, load, render, table

if TYPE_CHECKING:
    import psycopg
    from alembic.config import Config

    from leadprotect.database.drivers import AnyConnection

_ENDED = "UPDATE {schema}.shadow_runs SET ended_at = clock_timestamp() WHERE ended_at IS NULL"


def start_shadow(*, config: Config | None = None, lock_budget: str | None = None) -> Shadow:
    """Note from now on what contract would deny; nothing is done where that runs, and what a kill left is completed.

    One step for each table, with the timeout and the retries of a migration. Raises `InvalidRequest` before the
    revisions that it needs, after contract, with host_rls = off, and where the login does not own a table;
    `LockUnavailable` where a table could not be locked in time: the same call goes on.
    """
    s = load(config or alembic_config())
    with mapped_errors(), steps.in_steps(s, lock_budget=lock_budget) as at:
        check.check_server(at.guard)
        s = in_text(at.guard, s)
        _require_startable(at.guard, s)
        run = shadow(at.guard, settings=s)
        wanted = dict(wanted_triggers(s))
        gone = [name for name in standing(at.guard, s) if name not in wanted]
        for name in [*gone, *wanted]:
            at.step(partial(_make, s=s, name=name, wanted=wanted.get(name, {})))
        if run is None or run.ended_at is not None or not _as_started(at.guard, s):
            at.step(partial(_begin, s=s))
        found = shadow(at.guard, settings=s)
    assert found is not None  # noqa: S101 - just made
    return found


def stop_shadow(*, config: Config | None = None, lock_budget: str | None = None) -> Shadow | None:
    """Take the triggers away; what they noted stays until the next start. None where none was ever started.

    Whatever the settings say now. One step for each table, as `start_shadow` does it.
    """
    s = load(config or alembic_config())
    with mapped_errors(), steps.in_steps(s, lock_budget=lock_budget) as at:
        check.check_server(at.guard)
        for name in standing(at.guard, s):
            at.step(partial(_make, s=s, name=name, wanted={}))
        if foreseeable(at.guard, s):
            at.step(partial(_end, s=s))
        return shadow(at.guard, settings=s)


def _as_started(conn: AnyConnection, s: Settings) -> bool:
    """Whether the settings are those with which it was started."""
    query = "SELECT host_rls, exempt_roles::text[] FROM {schema}.shadow_run()"
    return [(kept, sorted(exempt)) for kept, exempt in rows(conn, render(query, s))] == [
        (s.host_rls, sorted(s.exempt_roles))
    ]


def _require_startable(conn: psycopg.Connection[Any], s: Settings) -> None:
    if relation(conn, s.schema, "host_row_security") is not None:
        raise InvalidRequest("contract is in force: what it denies stands in the audit: leadprotect audit list")
    if not foreseeable(conn, s):
        raise InvalidRequest("a shadow needs the revisions before contract: alembic upgrade head")
    if s.host_rls == "off":
        raise InvalidRequest("with host_rls = off contract leaves the leads alone: set it to enforce")
    if taken := taken_triggers(conn, s):
        raise InvalidRequest(f"trigger {', '.join(taken)} of the host has a name of leadprotect's: rename it")
    for name in watched(s):
        _require_owned(conn, name)
    for child in s.lead_tables:
        _require_column(conn, child)


def _require_owned(conn: psycopg.Connection[Any], name: str) -> None:
    query = """
        SELECT pg_catalog.pg_get_userbyid(c.relowner)::text, current_user::text,
               pg_catalog.pg_has_role(c.relowner, 'USAGE')
        FROM pg_catalog.pg_class AS c WHERE c.oid = %s
        """
    found = rows(conn, query, (relation(conn, *name.split(".", 1)),))
    if not found:
        raise InvalidRequest(f"there is no table {name}: correct leads_table or lead_tables")
    owner, me, owns = found[0]
    if not owns:
        raise InvalidRequest(
            f"{me} does not own {name}, and only its owner puts a trigger on it: run this as the login that migrates, "
            f"or {grants(conn, [owner], me)}"
        )


def _require_column(conn: psycopg.Connection[Any], child: LeadTable) -> None:
    query = "SELECT FROM pg_catalog.pg_attribute WHERE attrelid = %s AND attname = %s AND NOT attisdropped"
    if not rows(conn, query, (relation(conn, *child.table.split(".", 1)), child.column)):
        raise InvalidRequest(f"{child.table} has no column {child.column}: correct lead_tables")


def _make(conn: psycopg.Connection[Any], s: Settings, name: str, wanted: dict[str, str]) -> None:
    """Bring the triggers of one table to `wanted`, and lock it only where one differs."""
    present = standing(conn, s).get(name, {})
    host = table(name)
    ours = {s.role(trigger): statement for trigger, statement in wanted.items()}
    for trigger, enabled in present.items():
        if trigger not in ours or enabled != "A":
            conn.execute(f"DROP TRIGGER {ident(trigger)} ON {host}".encode())
    for trigger, statement in ours.items():
        if present.get(trigger) != "A":
            conn.execute(statement.encode())
            conn.execute(f"ALTER TABLE {host} ENABLE ALWAYS TRIGGER {ident(trigger)}".encode())


def _begin(conn: psycopg.Connection[Any], s: Settings) -> None:
    """From here on all of it is noted; what an earlier one noted is forgotten."""
    conn.execute(render("SET LOCAL ROLE {owner}", s).encode())
    conn.execute(
        render("UPDATE {schema}.shadow_runs SET ended_at = clock_timestamp() WHERE ended_at IS NULL", s).encode()
    )
    conn.execute(
        render("INSERT INTO {schema}.shadow_runs (host_rls, exempt_roles) VALUES (%s, %s::name[])", s).encode(),
        (s.host_rls, list(s.exempt_roles)),
    )
    fold(conn, s)
    conn.execute("RESET ROLE")


def _end(conn: psycopg.Connection[Any], s: Settings) -> None:
    conn.execute(render("SET LOCAL ROLE {owner}", s).encode())
    conn.execute(
        render("UPDATE {schema}.shadow_runs SET ended_at = clock_timestamp() WHERE ended_at IS NULL", s).encode()
    )
    fold(conn, s)
    conn.execute("RESET ROLE")
