"""Before contract: what it would deny, noted while nothing is denied.

Edits are decided by triggers that ask what contract will ask, on leads and lead_tables. No trigger fires when a row is
read, and a policy that noted reads would itself refuse COPY and dumps: so who reads is looked up while they do it, by
the locks that their statements hold.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import relation
from leadprotect.database.connection import connect
from leadprotect.database.memberships import grants
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.database.statements import rows
from leadprotect.errors import InvalidRequest
from leadprotect.settings import LeadTable, Settings, current, ident, render
from leadprotect.settings.names import SHADOW_CHILD_TRIGGERS, SHADOW_TRIGGERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    import psycopg

    from leadprotect.database.drivers import AnyConnection

MEANT = ("not_owner", "unassigned", "suspended", "not_manager")
"""Reasons of a denial that is what protection is for: it depends on who asks for which lead."""

SAMPLE_S = 0.2

_ON_LEADS = {
    "observe_edits": """
        CREATE TRIGGER {observe_edits} AFTER UPDATE ON {leads} REFERENCING OLD TABLE AS edited NEW TABLE AS changed
          FOR EACH STATEMENT EXECUTE FUNCTION {schema}.shadow_edits()
        """,
    "observe_inserts": """
        CREATE TRIGGER {observe_inserts} AFTER INSERT ON {leads} REFERENCING NEW TABLE AS made
          FOR EACH STATEMENT EXECUTE FUNCTION {schema}.shadow_inserts()
        """,
    "observe_moves": """
        CREATE TRIGGER {observe_moves} AFTER UPDATE ON {leads}
          FOR EACH ROW WHEN ({territory_of_new} IS DISTINCT FROM {territory_of_old}
            OR NEW.{lead_id} IS DISTINCT FROM OLD.{lead_id} OR {named_new} IS DISTINCT FROM {named_old})
          EXECUTE FUNCTION {schema}.shadow_lead()
        """,
    "observe_deletes": """
        CREATE TRIGGER {observe_deletes} BEFORE DELETE ON {leads}
          FOR EACH ROW EXECUTE FUNCTION {schema}.shadow_lead()
        """,
    "observe_truncate": """
        CREATE TRIGGER {observe_truncate} BEFORE TRUNCATE ON {leads}
          FOR EACH STATEMENT EXECUTE FUNCTION {schema}.shadow_truncate()
        """,
}
_ON_CHILD = {
    "observe_rows": """
        CREATE TRIGGER {observe_rows} BEFORE INSERT OR UPDATE OR DELETE ON {child}
          FOR EACH ROW EXECUTE FUNCTION {schema}.shadow_rows({child_lead_name}, KIND)
        """,
    "observe_truncate": """
        CREATE TRIGGER {observe_truncate} BEFORE TRUNCATE ON {child}
          FOR EACH STATEMENT EXECUTE FUNCTION {schema}.shadow_truncate()
        """,
}
_STANDING = """
    SELECT n.nspname::text, c.relname::text, t.tgname::text, t.tgenabled::text
    FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
    JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE p.pronamespace = pg_catalog.to_regnamespace(%s) AND pg_catalog.starts_with(p.proname, 'shadow_')
      AND NOT t.tgisinternal AND t.tgparentid = 0
    ORDER BY 1, 2, 3
    """
# who reads holds ACCESS SHARE until the transaction ends; who writes the same tables is noted by the triggers
_READING = """
    SELECT a.usename::text, coalesce(a.application_name, ''), l.relation::pg_catalog.regclass::text
    FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
    WHERE l.locktype = 'relation' AND l.granted AND l.mode = 'AccessShareLock' AND l.relation = ANY (%s)
      AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
      AND a.usename IS NOT NULL AND NOT pg_catalog.starts_with(coalesce(a.application_name, ''), 'leadprotect')
      AND a.pid <> pg_catalog.pg_backend_pid() AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_locks AS w
        WHERE w.pid = l.pid AND w.locktype = 'relation' AND w.mode = 'RowExclusiveLock' AND w.relation = ANY (%s))
    """
# a login is a member as itself, or as a role that it can set
_LOGINS = """
    SELECT l.rolname::text,
           NOT (l.rolsuper OR l.rolbypassrls OR l.rolname = ANY (%s::name[])
             OR %s <> 'force' AND NOT c.relforcerowsecurity AND pg_catalog.pg_has_role(l.oid, c.relowner, 'USAGE')),
           EXISTS (
             SELECT FROM pg_catalog.pg_roles AS r
             WHERE pg_catalog.pg_has_role(l.oid, r.oid, 'MEMBER') AND NOT r.rolsuper
               AND pg_catalog.pg_has_role(r.oid, {app_name}, 'USAGE') AND EXISTS (
                 SELECT FROM pg_catalog.unnest({schema}.all_territories()) AS t (code) JOIN pg_catalog.pg_roles AS b
                   ON b.rolname = {schema}.territory_role(t.code)
                 WHERE pg_catalog.pg_has_role(r.oid, b.oid, 'USAGE')))
    FROM pg_catalog.pg_roles AS l JOIN pg_catalog.pg_class AS c ON c.oid = pg_catalog.to_regclass({leads_name})
    WHERE l.rolname = ANY (%s::name[])
    """


@dataclass(frozen=True)
class Shadow:
    """A shadow: when it was started and by whom; `ended_at` is None while it runs."""

    started_at: datetime
    started_by: str
    ended_at: datetime | None


@dataclass(frozen=True)
class WouldBeDenied:
    """What contract would deny a login: a kind of statement on a table, for one reason.

    `times` counts statements (rows, of lead_tables), and is the least there were; `locks_out` says that no user of the
    login could do it, where the others are what protection is for; `remedy` is ready to paste or to follow.
    """

    login: str
    role: str
    applications: tuple[str, ...]
    kind: str
    host_table: str
    reason: str
    first_at: datetime
    last_at: datetime
    times: int
    locks_out: bool
    remedy: str


@dataclass(frozen=True)
class Reader:
    """A login that was seen reading: how often of the looks that were taken, and what contract leaves it.

    `sees` is nothing, everything, or declared: the territory that its session declares, which nobody sees from outside.
    """

    login: str
    applications: tuple[str, ...]
    host_table: str
    first_at: datetime
    last_at: datetime
    times: int
    sees: str
    remedy: str | None


@dataclass(frozen=True)
class ShadowReport:
    """What a shadow noted since its start; `missing` names triggers of it that do not stand or do not fire."""

    shadow: Shadow
    denied: tuple[WouldBeDenied, ...]
    readers: tuple[Reader, ...]
    missing: tuple[str, ...]

    @property
    def locked_out(self) -> tuple[WouldBeDenied, ...]:
        """Those that no user of the login could do."""
        return tuple(one for one in self.denied if one.locks_out)


def shadow(conn: AnyConnection, *, settings: Settings | None = None) -> Shadow | None:
    """The last shadow that was started; None where none was, or the revisions for it are not applied."""
    s = settings or current()
    return _run(conn, s)


def shadow_report(conn: AnyConnection, *, settings: Settings | None = None) -> ShadowReport | None:
    """What was noted since the last start, whoever would be locked out first; reads only.

    None where no shadow was ever started. Raises `ProtectionUnavailable` without the role of an operator.
    """
    s = settings or current()
    run = _run(conn, s)
    if run is None:
        return None
    noted = rows(
        conn,
        render(
            "SELECT login::text, role::text, applications, kind, host_table, reason, first_at, last_at, times "
            "FROM {schema}.shadow_noted() ORDER BY login, role, host_table, kind, reason",
            s,
        ),
    )
    bound = _memberships(conn, s, [login for login, *_ in noted])
    denied = [_denied(conn, s, row, member=bound.get(row[0], (True, False))[1]) for row in noted if row[5] != "read"]
    without = {one.login for one in denied if one.reason == "no_context"}
    readers = [
        _reader(conn, s, row, bound.get(row[0], (True, False)), without=row[0] in without)
        for row in noted
        if row[5] == "read"
    ]
    missing = [] if run.ended_at else lacking_triggers(conn, s)
    return ShadowReport(run, tuple(sorted(denied, key=lambda one: not one.locks_out)), tuple(readers), tuple(missing))


def watch_shadow(
    *, seconds: float, settings: Settings | None = None, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Look five times a second who reads leads and lead_tables, for so many seconds, and note it; how many were seen.

    A look costs the server a millisecond, and what is read in less than a fifth of a second is mostly missed. Raises
    `InvalidRequest` where no shadow runs.
    """
    s = settings or current()
    with mapped_errors(), connect(s) as conn:
        conn.autocommit = True
        run = _run(conn, s)
        if run is None or run.ended_at is not None:
            raise InvalidRequest("no shadow runs: leadprotect shadow start")
        seen: dict[tuple[str, str, str], _Seen] = {}
        ends = time.monotonic() + seconds
        try:
            while True:
                look(conn, s, seen)
                if time.monotonic() >= ends:
                    break
                sleep(min(SAMPLE_S, max(ends - time.monotonic(), 0)))
        finally:  # Ctrl-C keeps what was seen
            for (login, application, host), one in seen.items():
                conn.execute(
                    render("SELECT {schema}.shadow_saw(%s, %s, %s, %s, %s, %s)", s),
                    (login, application, host, one.times, one.first_at, one.last_at),
                )
            fold(conn, s)
        return len({login for login, *_ in seen})


@dataclass(frozen=True)
class _Seen:
    times: int
    first_at: Any
    last_at: Any


def look(conn: psycopg.Connection[Any], s: Settings, seen: dict[tuple[str, str, str], _Seen]) -> None:
    """Add who reads at this moment to `seen`, by login, application and table."""
    tables = [relation(conn, *name.split(".", 1)) for name in watched(s)]
    (now,) = rows(conn, "SELECT pg_catalog.clock_timestamp()")[0]
    for login, application, host in rows(conn, _READING, (tables, tables)):
        key = (login, application, host)
        before = seen.get(key) or _Seen(0, now, now)
        seen[key] = replace(before, times=before.times + 1, last_at=now)


def fold(conn: AnyConnection, s: Settings) -> None:
    """Add up the notes of each hour that is over."""
    rows(conn, render("SELECT {schema}.shadow_fold()", s))


def watched(s: Settings) -> tuple[str, ...]:
    """The tables of the host that a shadow is about: leads, and lead_tables."""
    return (s.leads_table, *(child.table for child in s.lead_tables))


def lacking_triggers(conn: AnyConnection, s: Settings) -> list[str]:
    """The triggers that a running shadow has no more, or that do not fire; as ``trigger on table``."""
    present = standing(conn, s)
    return [
        f"{s.role(trigger)} on {host}"
        for host, wanted in wanted_triggers(s)
        for trigger in wanted
        if present.get(host, {}).get(s.role(trigger)) != "A"
    ]


def standing_on(conn: AnyConnection, s: Settings) -> list[str]:
    """The tables of the host on which triggers of a shadow stand."""
    return list(standing(conn, s))


def wanted_triggers(s: Settings) -> Iterator[tuple[str, dict[str, str]]]:
    """For each table what makes its triggers, by their names."""
    yield s.leads_table, {name: render(_ON_LEADS[name], s) for name in SHADOW_TRIGGERS}
    for child in s.lead_tables:
        yield child.table, {name: _on_child(name, s, child) for name in SHADOW_CHILD_TRIGGERS}


def _on_child(name: str, s: Settings, child: LeadTable) -> str:
    return render(_ON_CHILD[name].replace("KIND", "'append'" if child.append else "'edit'"), s, child)


def standing(conn: AnyConnection, s: Settings) -> dict[str, dict[str, str]]:
    """Table -> names of the triggers of a shadow on it, with how they fire."""
    found: dict[str, dict[str, str]] = {}
    for schema, name, trigger, enabled in rows(conn, _STANDING, (ident(s.schema),)):
        found.setdefault(f"{schema}.{name}", {})[trigger] = enabled
    return found


def foreseeable(conn: AnyConnection, s: Settings) -> bool:
    """Whether the revisions that a shadow needs are applied."""
    wanted = [render(one, s) for one in ("{schema}.shadow_run()", "{schema}.shadow_binds(regclass)")]
    query = "SELECT bool_and(to_regprocedure(name) IS NOT NULL) FROM pg_catalog.unnest(%s::text[]) AS name"
    return rows(conn, query, (wanted,)) == [(True,)]


def _run(conn: AnyConnection, s: Settings) -> Shadow | None:
    if not foreseeable(conn, s):
        return None
    query = "SELECT started_at, started_by::text, ended_at FROM {schema}.shadow_run()"
    found = rows(conn, render(query, s))
    return Shadow(*found[0]) if found else None


def _memberships(conn: AnyConnection, s: Settings, logins: list[str]) -> dict[str, tuple[bool, bool]]:
    """Login -> whether contract binds it, and whether it is a member, or can become one, of our app and a territory."""
    values = (list(s.exempt_roles), s.host_rls, logins)
    return {login: (bound, member) for login, bound, member in rows(conn, render(_LOGINS, s), values)}


def _denied(conn: AnyConnection, s: Settings, row: tuple[Any, ...], *, member: bool) -> WouldBeDenied:
    login, role, applications, kind, host, reason, first_at, last_at, times = row
    shown = tuple(one for one in applications if one)
    locks_out = reason not in MEANT
    remedy = _remedy(conn, s, role, reason, member=member)
    return WouldBeDenied(login, role, shown, kind, host, reason, first_at, last_at, times, locks_out, remedy)


def _reader(
    conn: AnyConnection, s: Settings, row: tuple[Any, ...], counted: tuple[bool, bool], *, without: bool
) -> Reader:
    bound, member = counted
    login, role, applications, _, host, _, first_at, last_at, times = row
    remedy = None
    if not bound:
        sees = "everything"
    elif not member or without:
        sees, remedy = "nothing", _remedy(conn, s, role, "no_context" if member else "not_member", member=member)
    else:
        sees = "declared"
    return Reader(login, tuple(one for one in applications if one), host, first_at, last_at, times, sees, remedy)


def _remedy(conn: AnyConnection, s: Settings, role: str, reason: str, *, member: bool) -> str:
    """What to run or to deploy for a reason."""
    first, *others = map(s.territory_role, s.territories)
    grant = grants(conn, [s.role("app"), first], role, or_rather=others)
    exempt = f"name it in exempt_roles: {', '.join((*s.exempt_roles, role))}"
    declare = (
        f"declare who acts in each transaction: leadprotect.acting_as(conn, user_id, {s.territories[0]!r}), or in SQL "
        + render("SELECT {schema}.set_context('user id', 'territory');", s)
    )
    return {
        "no_context": f"{'' if member else grant + ' then '}{declare} for maintenance {exempt}",
        "not_member": f"{grant} for maintenance {exempt}",
        "not_found": f"it declared another territory than the lead's: declare that one; for maintenance {exempt}",
        "moved": f"id and territory are changed by maintenance only: let the owner of the table do it, or {exempt}",
        "copy": f"let it INSERT, or copy into a table of its own first; for maintenance {exempt}",
        "truncate": f"let the owner of the table do it; for maintenance {exempt}",
        "not_judged": "the server's log says why: leadprotect shadow could not judge",
        "unassigned": "meant; let somebody claim the lead, or assign it: leadprotect owner assign",
        "not_manager": "meant; a manager gives leads to others: leadprotect owner transfer",
        "suspended": "meant; the user has a rule that lets him see only: leadprotect rules list",
    }.get(reason, "meant; share the lead with him, or transfer it: leadprotect owner transfer")
