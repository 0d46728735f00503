"""Where the settings and the database disagree, and the counts that somebody should know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.doctor import present
from leadprotect.doctor.finding import Fault, check
from leadprotect.errors import ProtectionUnavailable, SettingsError
from leadprotect.preflight.applied import differences
from leadprotect.preflight.host_tables import host
from leadprotect.preflight.installed import check_installed
from leadprotect.settings import Settings, ident, literal, render, table
from leadprotect.settings.sources import column_sql, qualifies

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg


@check("danger", "Our functions hold the names of the settings with which they were made.")
def host_table_changed(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A table or column of the host that the settings name, and that is gone, renamed or of another type."""
    try:
        check_installed(conn, s, applied=True)
    except SettingsError as refused:
        yield Fault("settings", str(refused), "# put the setting back")
    yield from (Fault("settings", problem, "# put the table or the setting back") for problem in host(conn, s))


@check("danger", "What is written down does not hold: it binds, or spares, whom nobody meant.", needs="settings")
def setting_not_applied(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A setting that was changed after contract wrote it into the database."""
    for found in differences(conn, s):
        yield Fault(found.key, found.what, "leadprotect apply")


@check("danger", "The border of the leads admits a territory that nobody knows, or shuts out one that everybody does.")
def territory_list_stale(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """The constant all_territories() names others than the table of territories, or territory_roles() other roles."""
    query = """
        SELECT code, {role_prefix} || coalesce(suffix, lower(code)), {schema}.territory_role(code),
               quote_ident({role_prefix} || coalesce(suffix, lower(code))), {schema}.territory_roles() ->> code
        FROM {schema}.territories
        """
    known = conn.execute(render(query, s).encode()).fetchall()
    if not known:  # there is one at least
        raise ProtectionUnavailable(
            "row security hides the territories from this login; ask as a member of a territory, or as the owner"
        )
    codes = sorted(code for code, *_ in known)
    mends = f"SELECT {ident(s.schema)}.publish_territories();"
    for constant, lists in {
        "all_territories()": "unnest({schema}.all_territories())",
        "territory_roles()": "jsonb_object_keys({schema}.territory_roles())",
    }.items():
        listed = sorted(code for (code,) in conn.execute(render(f"SELECT {lists}", s).encode()))
        if listed != codes:
            yield Fault(constant, f"it names {listed}, the table {codes}", mends)
    for code, role, named, quoted, bordered in known:
        if named != role:
            yield Fault("territory_role(text)", f"it says {named} is the role of {code}, the table {role}", mends)
        if bordered is not None and bordered != quoted:
            yield Fault("territory_roles()", f"it says {bordered} is the role of {code}, the table {quoted}", mends)


@check("warning", "Whoever reads the column takes somebody else for the owner, who edits the lead.", needs="enforced")
def owner_column_differs(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Leads whose own column names somebody else than their owner, after contract, when the two are one."""
    if not s.owner_column:
        return
    query = render(
        "SELECT t.code, (SELECT count(*) FROM {schema}.owner_column_differs(t.code)) "
        "FROM unnest({schema}.all_territories()) AS t (code) ORDER BY 1",
        s,
    )
    for code, leads in conn.execute(query.encode()).fetchall():
        if leads:
            what = f"{leads:,} leads of {code} name somebody else than their owner in {s.owner_column}"
            mends = f"SELECT {ident(s.schema)}.settle_owner_column({literal(code)});  -- until it answers 0"
            yield Fault(s.leads_table, what, mends)


@check("warning", "Whoever wrote it there is owner from that day on, and no later activity beats it.")
def activities_in_future(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Qualifying activities of a time to come, while activities make owners: before contract."""
    if present.enforced(conn, s):
        return
    standing = present.host_tables(conn, s)
    for one in (source for source in s.activities if source.stands_on in standing):
        at = column_sql(one.at_column)
        where = f"FROM {table(one.table)} AS v WHERE {at} > now() AND {qualifies(s, one)}"
        row = conn.execute(f"SELECT count(*), max({at})::text {where}".encode()).fetchone()
        if row and row[0]:
            what = f"{row[0]:,} qualifying activities are in the future, the last at {row[1]}"
            yield Fault(one.table, what, f"SELECT * {where};  -- and correct them")


@check("note", "A kind that is spelled otherwise in the table makes no owner, and nothing else says so.")
def kind_without_activities(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A kind of the settings that no activity has, while activities make owners: before contract."""
    if present.enforced(conn, s):
        return
    standing = present.host_tables(conn, s)
    for one in (source for source in s.activities if source.stands_on in standing and source.kind_column):
        kind = ident(one.kind_column)
        query = f"SELECT DISTINCT {kind}::text FROM {table(one.table)} WHERE {kind} IS NOT NULL"
        known = {name for (name,) in conn.execute(query.encode()).fetchall()}
        unused = [name for name in one.qualifying_kinds if name not in known]
        if known and unused:
            what = f"no activity has the kind {' or '.join(unused)} of {one.key('qualifying_kinds')}"
            yield Fault(one.table, what, None)


@check("note", "Everybody sees and edits it: a lead without a territory is outside protection.")
def leads_unprotected(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Leads without a territory, counted by our own function."""
    if found := _counted(conn, s, "backfill_outside()"):
        yield Fault(s.leads_table, f"{found:,} leads have no territory", None)


@check("note", "Nobody edits it until somebody claims it or a manager assigns it.")
def leads_unowned(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Leads of a territory without an owner, counted by our own function."""
    if found := _counted(conn, s, "unowned_count()"):
        # after contract no activity makes an owner, and a backfill that is through has found all that there are
        query = f"SELECT FROM {ident(s.schema)}.backfill_status() AS b WHERE b.state <> 'done' LIMIT 1"
        left = not present.enforced(conn, s) and conn.execute(query.encode()).fetchone() is not None
        mends = "leadprotect backfill --all" if left else None
        yield Fault(s.leads_table, f"{found:,} leads of a territory have no owner", mends)


def _counted(conn: psycopg.Connection[Any], s: Settings, function: str) -> int:
    """What the function counts; nothing in an upgrade on its way, which has not made it yet."""
    if not any(one.key == function for one in present.functions(conn, s)):
        return 0
    row = conn.execute(f"SELECT {ident(s.schema)}.{function}".encode()).fetchone()
    return row[0] if row else 0
