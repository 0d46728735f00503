"""The version table, the server's version, and what the revisions in the table promise."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from leadprotect import phases
from leadprotect.database.statements import as_role
from leadprotect.doctor import present
from leadprotect.doctor.finding import Fault, check
from leadprotect.doctor.shipped import shipped_undo
from leadprotect.errors import PreflightError, ProtectionUnavailable
from leadprotect.migration import undo
from leadprotect.preflight import standing
from leadprotect.preflight.check import version_problem
from leadprotect.preflight.version_table import check_version_table, read_versions
from leadprotect.settings import Settings, ident, literal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import psycopg


def named_revision(conn: psycopg.Connection[Any], s: Settings) -> str | None:
    """The revision of ours that the version table names; raises where this login may not read it."""
    found = read_versions(conn, s, ours=False) or ()
    return next((version for version in found if version.startswith("lp_")), None)


@present.once
def applied(conn: psycopg.Connection[Any], s: Settings) -> str | None:
    """The revision of ours that the table names; where this login may not read it, the furthest whose tables stand."""
    try:
        with conn.transaction():
            return named_revision(conn, s)
    except (PreflightError, ProtectionUnavailable):
        return standing.furthest(conn, s)


@check("danger", "Whoever can write it, or hang code on it, says what is applied, and runs in the next migration.")
def version_table_open(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """The version table of another kind or owner, with a trigger, a rule, a policy, or a grant beyond reading."""
    try:
        check_version_table(conn, s, ours=True)
    except PreflightError as refused:
        mends = " ".join(refused.statements)
        for problem in refused.problems:
            yield Fault(f"{s.version_table_schema}.{s.version_table}", problem, mends or None)


@check("danger", "Two upgrades ran side by side, and each later one fails.")
def version_table_rows(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Several revisions of ours at once in the version table."""
    found = sorted(one for one in read_versions(conn, s, ours=False) or () if one.startswith("lp_"))
    if len(found) > 1:
        name = ident(s.version_table_schema, s.version_table)
        yield Fault(
            f"{s.version_table_schema}.{s.version_table}",
            f"it names {' and '.join(found)}",
            f"DELETE FROM {name} WHERE version_num IN ({', '.join(map(literal, found[:-1]))});",
        )


@check("danger", "Nobody whom row security binds reads a lead, and nothing is recorded; no row is lost.", needs=None)
def host_change_under_way(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Our tables in the quarantine, and a revision in the version table: a host-change runs, or ended halfway."""
    if (revision := applied(conn, s)) and standing.taken_away(conn, s):
        yield Fault(f"schema {s.quarantine}", f"it holds what {revision} made", "leadprotect host-change --resume")


@check("danger", "A number says that the leads are protected, and they are not.")
def contract_not_standing(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A revision that is applied, while what it made is gone: a swapped table, a restore without roles, a stamp."""
    known = phases.chain()
    revision = applied(conn, s)
    if revision in known:
        back = f"alembic downgrade {phases.before('contract')[-1]} && alembic upgrade head"
        for lacking in standing.lacking(conn, s, known[: known.index(revision) + 1]):
            yield Fault(lacking, f"{revision} is applied, and this is gone", back)


@check("danger", "Whoever rolls back from an older version executes it, with all his rights.", needs="text")
def undo_changed(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A way down in revision_undo that is not the shipped one; a warning where an applied revision has left none."""
    where = f"{s.schema}.{undo.TABLE}"
    with _as_owner(conn, s):
        found = {one.revision: (one, intact) for one, intact in undo.stored(conn, s)}
    known = phases.through(applied(conn, s))
    for revision, below in zip(known, (None, *known), strict=False):
        made = undo.Undo(revision, below, *shipped_undo(s, revision))
        if revision not in found:
            yield Fault(where, f"{revision} left no way down", f"{undo.keeping(made, s)};", "warning")
        elif found[revision] != (made, True):
            yield Fault(where, f"the way down of {revision} is not the shipped one", f"{undo.keeping(made, s)};")
    stamped = _above(conn, s, found)
    for revision in sorted(found.keys() - {*known, *stamped}):
        what = f"it holds a way down of {revision}, which is not applied"
        yield Fault(where, what, f"{undo.forgetting(revision, s)};")


@check("danger", "The next upgrade would make anew what stands, and what mends the rest would be for another phase.")
def version_stamped(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A version table that names less than what stands: it was lost, emptied or stamped."""
    with _as_owner(conn, s):
        found = {one.revision: (one, intact) for one, intact in undo.stored(conn, s)}
    if stamped := _above(conn, s, found):
        says = named_revision(conn, s) or "that nothing is applied"
        what = f"it says {says}, but {s.schema} stands at {stamped[-1]}"
        yield Fault(f"{s.version_table_schema}.{s.version_table}", what, f"alembic stamp {stamped[-1]}")
    elif named_revision(conn, s) is None and not found and not standing.lost_tables(conn, s, phases.chain()[:1]):
        what = f"it says that nothing is applied, but tables stand in {s.schema}: their rows were not restored"
        mends = f"# pg_restore --data-only --schema {ident(s.schema)}, from the dump that the tables came from"
        yield Fault(f"{s.version_table_schema}.{s.version_table}", what, mends)


def _above(conn: psycopg.Connection[Any], s: Settings, found: dict[str, tuple[undo.Undo, bool]]) -> list[str]:
    """Revisions that stand and that the table does not name: each left its tables, and the shipped way down."""
    revision, chain = applied(conn, s), phases.chain()
    if revision and revision not in chain:  # of a newer version
        return []
    known = phases.through(revision)
    above = [one for one in chain if one in found and one not in known]
    if not above or standing.lost_tables(conn, s, phases.through(above[-1])):
        return []
    below = dict(zip(chain, (None, *chain), strict=False))
    shipped = all(found[one] == (undo.Undo(one, below[one], *shipped_undo(s, one)), True) for one in above)
    return above if shipped else []


def _as_owner(conn: psycopg.Connection[Any], s: Settings) -> AbstractContextManager[None]:
    """As our owner where row security binds a member of his: its rows would be hidden, and taken for missing."""
    query = """
        SELECT row_security_active(to_regclass(%s)::oid) AND pg_has_role(current_user, to_regrole(%s), 'MEMBER')
        """
    names = (ident(s.schema, undo.TABLE), ident(s.role("owner")))
    return as_role(conn, s.role("owner")) if conn.execute(query, names).fetchall() == [(True,)] else nullcontext()


@check("note", "What is not applied yet protects nothing yet.")
def upgrade_pending(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Revisions of this version that are not applied."""
    revision = named_revision(conn, s)
    if pending := phases.pending(revision):
        yield Fault(s.schema, f"it stands at {revision}, {len(pending)} before {pending[-1]}", "alembic upgrade head")


@check("danger", "Row security of this minor version can be passed by known ways.", needs=None)
def server_version(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A server older than the first minor version without a known fault of row security."""
    del s
    if problem := version_problem(conn.info.server_version):
        yield Fault("server", problem, "# update the server to its newest minor version, and restart it")


@check("warning", "The log is what explains the gap that a denial in plain SQL leaves in the audit's numbers.")
def log_too_quiet(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Settings of the server, or of a role, under which lines of level LOG, and so denials, are not written."""
    del s
    row = conn.execute("SELECT current_setting('log_min_messages')").fetchone()
    if row and row[0] in ("fatal", "panic"):
        yield Fault(
            "log_min_messages",
            f"it is {row[0]}, so no line of level LOG is written",
            "ALTER SYSTEM SET log_min_messages = 'warning'; SELECT pg_reload_conf();",
        )
    query = """
        SELECT r.rolname::text, d.datname::text, setting FROM pg_db_role_setting AS p
        CROSS JOIN LATERAL unnest(p.setconfig) AS setting JOIN pg_roles AS r ON r.oid = p.setrole
        LEFT JOIN pg_database AS d ON d.oid = p.setdatabase
        WHERE (p.setdatabase = 0 OR d.datname = current_database())
          AND setting IN ('log_min_messages=fatal', 'log_min_messages=panic') ORDER BY 1, 2
        """
    for role, database, setting in conn.execute(query).fetchall():
        inside = f" IN DATABASE {ident(database)}" if database else ""
        mends = f"ALTER ROLE {ident(role)}{inside} RESET log_min_messages;"
        yield Fault(f"role {role}", f"its sessions begin with {setting.replace('=', ' = ')}", mends)
