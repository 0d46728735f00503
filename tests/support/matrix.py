"""What every acting role of a host sees and edits: recorded by real logins, compared between two moments."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from tests.hosts import ANNA, BERT
from tests.support.profiles import NIGHTLY

if TYPE_CHECKING:
    from tests.support.hosts import Actor, Host

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

    `remedied` is the host after what a DBA changed about it, before the first revision.
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

    def reached(self, matrix: Matrix, verb: str) -> set[Any]:
        """Protected leads that anybody reaches whom contract binds."""
        bound = {cell for cell in matrix if cell.table == LEADS and cell.verb == verb and cell in self.rightful}
        return {lead for cell in bound for lead in matrix[cell] if self.territories[lead]}


def live(host: Host) -> History:
    """The whole way up and down; one lead of Anna's is shared with Bert before contract.

    By day what the grants open is recorded when the backfill has run, which grants and revokes nothing.
    """
    before = record(host)
    host.remedy()
    remedied = record(host) if host.shape.remedies else before
    host.expand()
    expanded = record(host)
    host.grant()
    granted = record(host) if NIGHTLY else None
    host.backfill()
    host.rule(host.user(BERT.number), "COLLABORATOR", host.owned_by(ANNA, "DE"))
    filled = record(host)
    host.contract()
    contracted, rightful = record(host), allowed(host, before)
    host.downgrade("base")
    territories = {lead.lead: lead.territory for lead in host.leads().values()}
    moments = (before, remedied, expanded, granted or filled, filled, contracted, record(host), rightful)
    return History(host, *moments, territories)


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
