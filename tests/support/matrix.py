"""What every acting role of a host sees and edits: recorded by real logins, compared between two moments."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.access import ways
from leadprotect.doctor.examine import Diagnosis, examine
from tests.hosts import ANNA, BERT, FLYWAY, SUPABASE
from tests.support import sessions
from tests.support.profiles import NIGHTLY, PROFILES

if TYPE_CHECKING:
    from tests.support.hosts import Actor, Host

CONTROLS = (SUPABASE, FLYWAY)
"""By day the control is a host with row security of its own, and one without."""
LEADS = "leads"
SELECT, UPDATE, DELETE, INSERT = "SELECT", "UPDATE", "DELETE", "INSERT"
MARKS = itertools.count(1)


@dataclass(frozen=True)
class Cell:
    """One actor, one table or view, one verb."""

    actor: Actor
    table: str
    verb: str

    def __str__(self) -> str:
        return f"{self.actor}: {self.verb} {self.table}"


Matrix = dict[Cell, frozenset[Any]]
"""Cell -> ids of the rows that the verb reached; of INSERT, the territory and tenant of the leads that it added."""


def record(host: Host) -> Matrix:
    """Let every actor try everything; what he changed is undone, and what he committed a superuser has read.

    Who has a login and a role in common follows each other on one session, as in a pool.
    """
    found: Matrix = {}
    leads = list(host.leads())
    with host.connect(autocommit=True) as superuser:
        for (login, _), actors in itertools.groupby(host.actors(), key=lambda actor: (actor.login, actor.role)):
            with psycopg.connect(host.url_of(login), autocommit=True, prepare_threshold=None) as conn:
                for actor in actors:
                    found |= _of(host, actor, conn, leads, superuser)
    return found


def _of(
    host: Host, actor: Actor, conn: psycopg.Connection[Any], leads: list[Any], superuser: psycopg.Connection[Any]
) -> Matrix:
    cells = itertools.product((LEADS, *host.shape.children, "activities"), (SELECT, UPDATE, DELETE))
    found: Matrix = {Cell(actor, table, verb): frozenset() for table, verb in cells}
    found |= {Cell(actor, LEADS, INSERT): frozenset(), Cell(actor, host.shape.view, SELECT): frozenset()}
    try:
        host.hand_out(conn, actor)
    except psycopg.errors.InsufficientPrivilege:
        return found  # may not become this role: nothing is seen and nothing edited
    tried = _tried(host, conn, leads, superuser)
    return found | {Cell(actor, table, verb): rows for (table, verb), rows in tried.items()}


def _tried(
    host: Host, conn: psycopg.Connection[Any], leads: list[Any], superuser: psycopg.Connection[Any]
) -> dict[tuple[str, str], frozenset[Any]]:
    tables = {table: (table, "id") for table in host.shape.children} | {"activities": ("{activities}", "{activity_id}")}
    found = {
        (LEADS, SELECT): _ids(host, conn, "SELECT {lead_id} FROM {leads}"),
        (host.shape.view, SELECT): _ids(host, conn, f"SELECT id FROM {host.shape.view}"),
        (LEADS, UPDATE): _updated(host, conn, leads, superuser),
        (LEADS, DELETE): _deleted(host, conn, leads),
        (LEADS, INSERT): _inserted(host, conn),
    }
    for name, (table, key) in tables.items():
        found[name, SELECT] = _ids(host, conn, f"SELECT {key} FROM {table}")
        found[name, UPDATE] = _ids(host, conn, f"UPDATE {table} SET org_id = org_id RETURNING {key}")
        found[name, DELETE] = _ids(host, conn, f"DELETE FROM {table} RETURNING {key}")
    return found


def _ids(host: Host, conn: psycopg.Connection[Any], statement: str, *params: Any) -> frozenset[Any]:
    """The ids that a statement returns; what it changed is undone, and a refusal is no row."""
    try:
        if statement.startswith(SELECT):  # a question to each of dozens of actors, and nothing to undo
            return frozenset(host.query(conn, statement, *params))
        return _undone(host, conn, statement, *params)
    except psycopg.Error:
        return frozenset()


def _undone(host: Host, conn: psycopg.Connection[Any], statement: str, *params: Any) -> frozenset[Any]:
    """The ids that a change returns, and it is undone: in one message to the server, of tens of thousands."""
    try:
        cursor = psycopg.ClientCursor(conn).execute(f"BEGIN; {host.text(statement)}; ROLLBACK", params or None)
    except psycopg.Error:
        conn.rollback()
        raise
    cursor.nextset()
    return frozenset(row[0] for row in cursor.fetchall()) if cursor.description else frozenset()


def _updated(
    host: Host, conn: psycopg.Connection[Any], leads: list[Any], superuser: psycopg.Connection[Any]
) -> frozenset[Any]:
    """Leads that carry the mark of this session afterwards, as a superuser reads them: these changes are committed."""
    mark = f"mark {next(MARKS)}"
    statement = "UPDATE {leads} SET remark = %s WHERE {lead_id} = ANY (%s)"
    try:
        host.query(conn, statement, mark, leads)
    except psycopg.Error:  # one row that is refused loudly hides the others
        for lead in leads:
            with contextlib.suppress(psycopg.Error):
                host.query(conn, statement, mark, [lead])
    return frozenset(host.query(superuser, "SELECT {lead_id} FROM {leads} WHERE remark = %s", mark))


def _deleted(host: Host, conn: psycopg.Connection[Any], leads: list[Any]) -> frozenset[Any]:
    """Leads that one statement, or one each, would delete."""
    statement = "DELETE FROM {leads} WHERE {lead_id} = ANY (%s) RETURNING {lead_id}"
    try:
        return _undone(host, conn, statement, leads)
    except psycopg.Error:
        return frozenset(itertools.chain.from_iterable(_ids(host, conn, statement, [lead]) for lead in leads))


def _inserted(host: Host, conn: psycopg.Connection[Any]) -> frozenset[Any]:
    added = set()
    for territory, org in itertools.product(("DE", "CH", None), (1, 2)):
        try:
            insert = f"INSERT INTO {{leads}} (org_id, {host.input_of(territory)}) VALUES (%s, %s)"
            _undone(host, conn, insert, org, territory)
        except psycopg.Error:
            continue
        added.add((territory, org))
    return frozenset(added)


@dataclass
class History:
    """The matrix of a host at each moment of its life, and what contract leaves of the first one.

    `remedied` is the host after what a DBA changed about it, before the first revision. `stray` and `bare` are the
    controls: the host with a policy that lets everybody in, and the contracted one without ours. What doctor said of
    it is known where its checks are tried, and what pg_dump says, before the first revision and when all is left.
    """

    host: Host
    before: Matrix
    remedied: Matrix
    expanded: Matrix
    granted: Matrix
    filled: Matrix
    contracted: Matrix
    downgraded: Matrix
    rightful: Matrix
    territories: dict[Any, str | None]
    stray: Matrix | None
    bare: Matrix | None
    owners: dict[tuple[Any, str], str]
    derived: dict[tuple[Any, str], str]
    diagnoses: list[Diagnosis]
    dumps: tuple[list[str], list[str]]

    def reached(self, matrix: Matrix, verb: str) -> set[Any]:
        """Protected leads that anybody reaches whom contract binds."""
        bound = {cell for cell in matrix if cell.table == LEADS and cell.verb == verb and cell in self.rightful}
        return {lead for cell in bound for lead in matrix[cell] if self.territories[lead]}


def live(host: Host) -> History:
    """The whole way up and down; one lead of Anna's is shared with Bert before contract.

    By day what the grants open is recorded when the backfill has run, which grants and revokes nothing, and doctor
    and our own policies are tried on the newest server.
    """
    thorough = NIGHTLY or host.profile is PROFILES[0]
    before = record(host)
    stray = with_stray_policy(host) if host.shape.row_security else None
    host.remedy()
    dumped = host.dump()
    remedied = record(host) if host.shape.remedies else before
    host.expand()
    diagnoses = [examined(host)] if thorough else []
    expanded = record(host)
    host.grant()
    granted = record(host) if NIGHTLY else None
    host.backfill()
    owned, wanted = owners(host), derived(host)
    host.rule(host.user(BERT.number), "COLLABORATOR", host.owned_by(ANNA, "DE"))
    filled = record(host)
    host.contract()
    diagnoses += [examined(host), examined(host, "operator")] if thorough else []
    contracted, rightful = record(host), allowed(host, before)
    bare = without_our_policies(host) if thorough and (NIGHTLY or host.shape in CONTROLS) else None
    host.downgrade("base")
    diagnoses += [examined(host)] if thorough else []
    territories = {lead.lead: lead.territory for lead in host.leads().values()}
    moments = (before, remedied, expanded, granted or filled, filled, contracted, record(host), rightful)
    host.leave()
    left = (dumped, host.dump())
    return History(host, *moments, territories, stray, bare, owned, wanted, diagnoses, left)


def examined(host: Host, login: str = "") -> Diagnosis:
    """What doctor says to a superuser, or to a login of the host."""
    with psycopg.connect(host.url_of(login) if login else host.url, autocommit=True) as conn:
        return examine(conn, settings=host.settings)


def with_stray_policy(host: Host) -> Matrix:
    """What everybody reaches while a policy of the leads lets him in."""
    host.sql("CREATE POLICY stray ON {leads} USING (true)")
    found = record(host)
    host.sql("DROP POLICY stray ON {leads}")
    return found


def without_our_policies(host: Host) -> Matrix:
    """What is reached in a copy from which ours on the leads are gone; row security too, where it is ours."""
    ways.close()  # a database that somebody uses can't be copied
    copy = host.copy(f"{host.name}_bare")
    janitor = sessions.Janitor(host.server, copy.name, host.name)
    janitor.init()
    try:
        query = (
            "SELECT polname::text FROM pg_policy WHERE polrelid = {leads_name}::regclass AND starts_with(polname, %s)"
        )
        for policy in copy.sql(query, copy.settings.schema):
            copy.sql(f'DROP POLICY "{policy}" ON {{leads}}')
        if not copy.shape.row_security:
            copy.sql("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY")
        return record(copy)
    finally:
        janitor.drop()


def derived(host: Host) -> dict[tuple[Any, str], str]:
    """Who must own each lead: its newest qualifying activity of somebody, looked for in Python."""
    newest: dict[Any, tuple[Any, str]] = {}
    columns = "{activity_lead_id}, {activity_user_id}::text, {activity_kind}, {activity_at}, {activity_id}::text"
    for lead, user, kind, at, number in host.sql(f"SELECT {columns} FROM {{activities}}"):
        if user and kind in {"call", "visit"} and (lead not in newest or newest[lead][0] < (at, number)):
            newest[lead] = ((at, number), user)
    leads = host.leads()
    return {(lead, territory): user for lead, (_, user) in newest.items() if (territory := leads[lead].territory)}


def owners(host: Host) -> dict[tuple[Any, str], str]:
    """Who owns each lead where, as the assignments have it."""
    rows = host.sql("SELECT lead_id, territory, user_id::text FROM {schema}.user_lead_assignments")
    return {(lead, territory): user for lead, territory, user in rows}


# --- what two moments say about each other


def gained(before: Matrix, after: Matrix) -> list[str]:
    """Who reaches rows afterwards that he did not reach before, one line a cell."""
    return [_line(host_cell, more) for host_cell, rows in after.items() if (more := rows - before[host_cell])]


def lost(before: Matrix, after: Matrix) -> list[str]:
    """Who reaches fewer rows afterwards."""
    return gained(after, before)


def _line(cell: Cell, rows: frozenset[Any]) -> str:
    return f"{cell}: {len(rows)} rows, such as {min(rows, key=str)}"


def allowed(host: Host, before: Matrix) -> Matrix:
    """What the contract leaves of what the host allowed: the leads' cells of every actor whom contract binds.

    A protected lead is for whoever's acting role holds its territory and has it in context, an edit of it
    for its owner and whom it is shared with; a lead without territory is as before.
    """
    leads, held, editors = host.leads(), host.held(), host.editors()

    def admits(actor: Actor, territory: str | None) -> bool:
        return territory is None or (actor.territory == territory and (actor.acts_as, territory) in held)

    def edits(actor: Actor, lead: Any, territory: str | None) -> bool:
        user = host.user(actor.person.number) if actor.person else None
        return territory is None or (lead, territory, user) in editors

    found: Matrix = {}
    for cell, rows in before.items():
        if cell.table != LEADS or cell.actor.acts_as in host.shape.unbound:
            continue
        if cell.verb == INSERT:
            found[cell] = frozenset(row for row in rows if admits(cell.actor, row[0]))
            continue
        here = {lead: leads[lead].territory for lead in rows if admits(cell.actor, leads[lead].territory)}
        found[cell] = frozenset(
            lead for lead, territory in here.items() if cell.verb == SELECT or edits(cell.actor, lead, territory)
        )
    return found


def only(matrix: Matrix, cells: Matrix) -> Matrix:
    """The part of a matrix that another one speaks of."""
    return {cell: rows for cell, rows in matrix.items() if cell in cells}
