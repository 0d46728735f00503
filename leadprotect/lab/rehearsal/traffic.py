"""Live traffic of one version of the application, in a process of its own: python -m leadprotect.lab.rehearsal.traffic.

Reads what to do from stdin as JSON, prints one line per transaction, and ends when stdin is closed.
The old version knows nothing of leadprotect. The new one asks for every edit, as the library says.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

import leadprotect
from leadprotect.errors import ConnectionUnusable, LeadAccessDenied, LeadProtectError, ProtectionUnavailable
from leadprotect.lab.rehearsal.host import Statements
from leadprotect.settings import current, ident

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS = 6
STATEMENT_TIMEOUT_S = 20
_REFRESH_S = 2.0


@dataclass
class Application:
    """What all threads of a version share; `owners` maps a lead to its user, as far as known."""

    version: str
    conninfo: str
    admin: str
    rate: float
    leads: list[tuple[str, str]]
    activities: list[str]
    sql: Statements
    owners: dict[str, str] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)
    done: list[tuple[float, float, str, str, str]] = field(default_factory=list)


class WrongResultError(Exception):
    """The database answered, and not what it must."""


Operation = Callable[[Application, "psycopg.Connection[Any]"], None]


def read(app: Application, conn: psycopg.Connection[Any]) -> None:
    """A lead by its id."""
    lead, _ = random.choice(app.leads)  # noqa: S311 - load, no secret
    expect(len(conn.execute(app.sql.read, (lead,)).fetchall()), "lead read")


def page(app: Application, conn: psycopg.Connection[Any]) -> None:
    """Some leads in the order of their ids."""
    lead, _ = random.choice(app.leads)  # noqa: S311
    conn.execute(app.sql.page, (lead,)).fetchall()


def edit(app: Application, conn: psycopg.Connection[Any]) -> None:
    """A change of a lead."""
    lead, _ = random.choice(app.leads)  # noqa: S311
    expect(conn.execute(app.sql.edit, (lead,)).rowcount, "lead edited")


def act(app: Application, conn: psycopg.Connection[Any]) -> None:
    """A new activity, like an earlier one."""
    if app.activities:
        expect(conn.execute(app.sql.act, (random.choice(app.activities),)).rowcount, "activity added")  # noqa: S311


def check(app: Application, conn: psycopg.Connection[Any]) -> None:
    """Show a lead, with or without the button to edit it."""
    lead, territory = random.choice(app.leads)  # noqa: S311
    with acting(app, conn, lead, territory):
        leadprotect.can_edit(conn, lead)
        expect(len(conn.execute(app.sql.read, (lead,)).fetchall()), "lead read")


def asserted_edit(app: Application, conn: psycopg.Connection[Any]) -> None:
    """Assert, then change; what is denied is not changed."""
    lead, territory = random.choice(app.leads)  # noqa: S311
    with acting(app, conn, lead, territory):
        leadprotect.assert_edit(conn, lead)
        expect(conn.execute(app.sql.edit, (lead,)).rowcount, "lead edited")


def own_list(app: Application, conn: psycopg.Connection[Any]) -> None:
    """The first page of a seller's own leads."""
    lead, territory = random.choice(app.leads)  # noqa: S311
    with acting(app, conn, lead, territory):
        leadprotect.editable_leads(conn, limit=20)


def own_activity(app: Application, conn: psycopg.Connection[Any]) -> None:
    """A new activity, with a context."""
    lead, territory = random.choice(app.leads)  # noqa: S311
    with acting(app, conn, lead, territory):
        act(app, conn)


def foreign(app: Application, conn: psycopg.Connection[Any]) -> None:
    """A lead of another territory can never be edited."""
    lead, territory = random.choice(app.leads)  # noqa: S311
    elsewhere = [code for code in current().territories if code != territory]
    with acting(app, conn, lead, elsewhere[0] if elsewhere else "NOWHERE"):
        if leadprotect.can_edit(conn, lead):
            raise WrongResultError("a lead of another territory was editable")


MIXES: dict[str, list[tuple[Operation, int]]] = {
    "old": [(read, 45), (page, 10), (edit, 25), (act, 20)],
    "new": [(check, 40), (asserted_edit, 35), (own_list, 10), (own_activity, 10), (foreign, 5)],
}


def expect(rows: int, what: str) -> None:
    """One row, or the application is broken."""
    if rows != 1:
        raise WrongResultError(f"{rows} rows instead of 1: {what}")


@contextmanager
def acting(app: Application, conn: psycopg.Connection[Any], lead: str, territory: str) -> Iterator[None]:
    """For the owner of the lead, or for somebody where none is known."""
    nobody = "00000000-0000-4000-8000-ffffffffffff"
    with leadprotect.acting_as(conn, app.owners.get(lead, nobody), territory):
        yield


def outcome(app: Application, conn: psycopg.Connection[Any], operation: Operation) -> tuple[str, str]:
    """Run it in a transaction: ok, denied, unavailable, or error with what was said."""
    try:
        with conn.transaction():
            operation(app, conn)
    except LeadAccessDenied as error:
        return "denied", error.decision.reason
    except ProtectionUnavailable as error:
        # a service denies on either, but only the first says clearly what is the matter
        return ("error", str(error)) if isinstance(error, ConnectionUnusable) else ("unavailable", "")
    except psycopg.Error as error:
        return "error", f"{error.sqlstate or type(error).__name__}: {error.diag.message_primary or error}"
    except (LeadProtectError, WrongResultError) as error:
        return "error", f"{type(error).__name__}: {error}"
    return "ok", ""


def client(app: Application, number: int) -> None:
    """Never raises: what ends it is part of the report."""
    try:
        keep_working(app, number)
    except Exception as error:  # noqa: BLE001 - a thread that ended unseen would look like silence
        app.done.append((time.time(), 0.0, "connect", "error", f"{type(error).__name__}: {error}"))


def keep_working(app: Application, number: int) -> None:
    """One connection of the application's pool, at its share of the rate."""
    operations, weights = zip(*MIXES[app.version], strict=True)
    interval = THREADS / app.rate
    following = time.perf_counter() + interval * number / THREADS
    conn = connect(app)
    while not app.ended.wait(max(following - time.perf_counter(), 0)):
        # what was missed is missed: a stall must not be followed by a flood of its own making
        following = max(following + interval, time.perf_counter())
        operation = random.choices(operations, weights)[0]  # noqa: S311
        began, at = time.perf_counter(), time.time()
        result, detail = outcome(app, conn, operation)
        app.done.append((at, time.perf_counter() - began, operation.__name__, result, " ".join(detail.split())))
        if conn.closed:
            conn = connect(app)


def connect(app: Application) -> psycopg.Connection[Any]:
    """A session like that of a service."""
    name = f"rehearsal {app.version} version"
    conn: psycopg.Connection[Any] = psycopg.connect(app.conninfo, autocommit=True, application_name=name)
    conn.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'")
    return conn


def learn_owners(app: Application) -> None:
    """Who owns which lead, as its users know it; asked on the side, by the rehearsal itself."""
    s = current()
    query = (
        f"SELECT lead_id::text, user_id::text FROM {ident(s.schema)}.user_lead_assignments "
        f"WHERE lead_id = ANY (%s::{s.lead_id_type}[]) AND user_id IS NOT NULL"
    )
    with psycopg.connect(app.admin, autocommit=True, application_name="rehearsal") as conn:
        while not app.ended.wait(_REFRESH_S if app.owners else 0.2):
            with suppress(
                psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedObject
            ):
                app.owners.update(conn.execute(query, ([lead for lead, _ in app.leads],)).fetchall())


def main() -> None:
    """Work until stdin is closed, then print what was done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    given = json.loads(sys.stdin.readline())
    app = Application(sql=Statements(**given.pop("sql")), **given)
    threads = [threading.Thread(target=client, args=(app, number)) for number in range(THREADS)]
    if app.version == "new":
        threads.append(threading.Thread(target=learn_owners, args=(app,)))
    for thread in threads:
        thread.start()
    sys.stdin.read()
    app.ended.set()
    for thread in threads:
        thread.join()
    for line in app.done:
        print(json.dumps(line))  # noqa: T201 - for the parent


if __name__ == "__main__":
    main()
