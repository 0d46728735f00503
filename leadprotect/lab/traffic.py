"""Live traffic in a process of its own, which shares no interpreter with what is measured.

``python -m leadprotect.lab.traffic`` reads an `Application` as JSON from stdin, works until stdin is closed, so that
it never outlives its parent, and prints a line per transaction. The old version of a host's application knows
nothing of leadprotect. The new one asks for every edit, as the library says. The third one only writes.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

import leadprotect
from leadprotect.database.opening import open_connection
from leadprotect.errors import ConnectionUnusable, LeadAccessDenied, LeadProtectError, ProtectionUnavailable
from leadprotect.processes import Started
from leadprotect.settings import current, ident, url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RATE = 180.0
"""Transactions a second, all versions together."""

_REFRESH_S = 2.0


class Done(NamedTuple):
    """A transaction: when it began (epoch), its seconds, what it was, and ok, denied, unavailable or error."""

    version: str
    at: float
    seconds: float
    kind: str
    outcome: str
    detail: str


@dataclass(frozen=True)
class Statements:
    """What the host's application does; each takes a lead's id as text, `act` one of the `activities`."""

    edit: str
    act: str
    read: str = ""
    page: str = ""


@dataclass(frozen=True)
class Application:
    """A version that works with these leads and activities on `conninfo`, `rate` transactions a second.

    `leads` are ids with their territories. `limits` is a statement for each of its
    `sessions`. With `every_due` no transaction is left out after a stall: each counts from when it was due.
    """

    version: str
    conninfo: str
    rate: float
    sql: Statements
    leads: list[tuple[str, str]]
    activities: list[str]
    sessions: int = 6
    limits: str = "SET statement_timeout = '20s'"
    every_due: bool = False


@dataclass
class Served:
    """What an application did, and how its process ended: there when the block of `live_traffic` is through."""

    done: list[Done] = field(default_factory=list)
    code: int = 0


@contextmanager
def live_traffic(app: Application, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Have `app` at work in a process of its own while the block lasts; raises `LeadProtectError` if it never is."""
    served = Served()
    with Started(  # a folder named leadprotect may lie where the caller is: -P
        [sys.executable, "-P", "-m", "leadprotect.lab.traffic"],
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        start_new_session=True,  # what a terminal sends to the whole group is the parent's to handle
    ) as process:  # fmt: skip
        assert process.stdin is not None  # noqa: S101 - for the type checker
        assert process.stdout is not None  # noqa: S101
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asdict(app)) + "\n")
            process.stdin.flush()
        if process.stdout.readline() != "serving\n":
            raise LeadProtectError(f"the live traffic of the {app.version} version did not start")
        yield served
        process.stdin.close()
        served.done += [Done(app.version, *json.loads(line)) for line in process.stdout]
        served.code = process.wait()


def quantile(ordered: list[float], part: float) -> float:
    """The value below which `part` of the sorted values are; 0 without any."""
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)] if ordered else 0.0


# --- in the process


@dataclass
class Shift:
    """What all threads of an application share; `owners` maps a lead to its user, as far as known."""

    app: Application
    owners: dict[str, str] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)
    done: list[tuple[float, float, str, str, str]] = field(default_factory=list)
    turn: threading.Lock = field(default_factory=threading.Lock)
    epoch: float = field(default_factory=lambda: time.time() - time.perf_counter())
    following: float = field(default_factory=time.perf_counter)

    def due(self) -> float:
        """When the next transaction is due, whoever takes it; on the clock of `time.perf_counter`."""
        with self.turn:
            # what was missed is missed: a stall must not be followed by a flood of its own making
            at = self.following if self.app.every_due else max(self.following, time.perf_counter())
            self.following = at + 1 / self.app.rate
            return at


class WrongResultError(Exception):
    """The database answered, and not what it must."""


Operation = Callable[[Shift, "psycopg.Connection[Any]"], None]


def read_lead(shift: Shift, conn: psycopg.Connection[Any]) -> None:
    """A lead by its id."""
    lead, _ = a_lead(shift)
    expect(len(conn.execute(shift.app.sql.read, (lead,)).fetchall()), "lead read")


def read_page(shift: Shift, conn: psycopg.Connection[Any]) -> None:
    """Some leads in the order of their ids."""
    lead, _ = a_lead(shift)
    conn.execute(shift.app.sql.page, (lead,)).fetchall()


def edit_lead(shift: Shift, conn: psycopg.Connection[Any]) -> None:
    """A change of a lead."""
    lead, _ = a_lead(shift)
    expect(conn.execute(shift.app.sql.edit, (lead,)).rowcount, "lead edited")


def add_activity(shift: Shift, conn: psycopg.Connection[Any]) -> None:
    """A new activity, like an earlier one."""
    if shift.app.activities:
        activity = random.choice(shift.app.activities)  # noqa: S311 - load, no secret
        expect(conn.execute(shift.app.sql.act, (activity,)).rowcount, "activity added")


def show_lead(shift: Shift, conn: psycopg.Connection[Any]) -> None:
    """Show a lead, with or without the button to edit it."""
    lead, territory = a_lead(shift)
    with acting_as_owner(shift, conn, lead, territory):
        leadprotect.can_edit(conn, lead)
        expect(len(conn.execute(shift.app.sql.read, (lead,)).fetchall()), "lead read")


def edit_asserted(shift: Shift, conn: psycopg.Connection[Any]) -> None:
    """Assert, then change; what is denied is not changed."""
    lead, territory = a_lead(shift)
    with acting_as_owner(shift, conn, lead, territory):
        leadprotect.assert_edit(conn, lead)
        expect(conn.execute(shift.app.sql.edit, (lead,)).rowcount, "lead edited")


def list_own(shift: Shift, conn: psycopg.Connection[Any]) -> None:
    """The first page of a seller's own leads."""
    lead, territory = a_lead(shift)
    with acting_as_owner(shift, conn, lead, territory):
        leadprotect.editable_leads(conn, limit=20)


def add_own_activity(shift: Shift, conn: psycopg.Connection[Any]) -> None:
    """A new activity, with a context."""
    lead, territory = a_lead(shift)
    with acting_as_owner(shift, conn, lead, territory):
        add_activity(shift, conn)


def ask_from_elsewhere(shift: Shift, conn: psycopg.Connection[Any]) -> None:
    """A lead of another territory can never be edited."""
    lead, territory = a_lead(shift)
    elsewhere = [code for code in current().territories if code != territory]
    with acting_as_owner(shift, conn, lead, elsewhere[0] if elsewhere else "NOWHERE"):
        if leadprotect.can_edit(conn, lead):
            raise WrongResultError("a lead of another territory was editable")


MIXES: dict[str, dict[str, tuple[Operation, int]]] = {
    "old": {"read": (read_lead, 45), "page": (read_page, 10), "edit": (edit_lead, 25), "act": (add_activity, 20)},
    "new": {
        "check": (show_lead, 40),
        "asserted_edit": (edit_asserted, 35),
        "own_list": (list_own, 10),
        "own_activity": (add_own_activity, 10),
        "foreign": (ask_from_elsewhere, 5),
    },
    "writing": {"edit": (edit_lead, 25), "act": (add_activity, 75)},
}
"""Version -> what it does, and how often."""


def a_lead(shift: Shift) -> tuple[str, str]:
    """Any of the leads, and its territory."""
    return random.choice(shift.app.leads)  # noqa: S311 - load, no secret


def expect(rows: int, what: str) -> None:
    """One row, or the application is broken."""
    if rows != 1:
        raise WrongResultError(f"{rows} rows instead of 1: {what}")


@contextmanager
def acting_as_owner(shift: Shift, conn: psycopg.Connection[Any], lead: str, territory: str) -> Iterator[None]:
    """For the owner of the lead, or for somebody where none is known."""
    nobody = "00000000-0000-4000-8000-ffffffffffff"
    with leadprotect.acting_as(conn, shift.owners.get(lead, nobody), territory):
        yield


def outcome(shift: Shift, conn: psycopg.Connection[Any], operation: Operation) -> tuple[str, str]:
    """Run it in a transaction: ok, denied, unavailable, or error with what was said."""
    try:
        with conn.transaction():
            operation(shift, conn)
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


def client(shift: Shift) -> None:
    """Never raises: what ends it is part of the report."""
    try:
        keep_working(shift)
    except Exception as error:  # noqa: BLE001 - a thread that ended unseen would look like silence
        shift.done.append((time.time(), 0.0, "connect", "error", f"{type(error).__name__}: {error}"))


def keep_working(shift: Shift) -> None:
    """One connection of the application's pool."""
    mix = MIXES[shift.app.version]
    kinds, weights = list(mix), [weight for _, weight in mix.values()]
    conn = service_session(shift.app)
    while not shift.ended.wait(max((due := shift.due()) - time.perf_counter(), 0)):
        kind = random.choices(kinds, weights)[0]  # noqa: S311
        began = due if shift.app.every_due else time.perf_counter()
        result, detail = outcome(shift, conn, mix[kind][0])
        seconds = time.perf_counter() - began
        shift.done.append((shift.epoch + began, seconds, kind, result, " ".join(detail.split())))
        if conn.closed:
            conn = service_session(shift.app)


def service_session(app: Application) -> psycopg.Connection[Any]:
    """A session like that of a service."""
    name = f"rehearsal {app.version} version"
    conn: psycopg.Connection[Any] = psycopg.connect(app.conninfo, autocommit=True, application_name=name)
    conn.execute(app.limits)
    return conn


def learn_owners(shift: Shift) -> None:
    """Who owns which lead, as its users know it; asked on the side, by the rehearsal itself."""
    s = current()
    query = (
        f"SELECT lead_id::text, user_id::text FROM {ident(s.schema)}.user_lead_assignments "
        f"WHERE lead_id = ANY (%s::{s.lead_id_type}[]) AND user_id IS NOT NULL"
    )
    with open_connection(partial(url, s), application="rehearsal") as conn:
        while not shift.ended.wait(_REFRESH_S if shift.owners else 0.2):
            with suppress(
                psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedObject
            ):
                shift.owners.update(conn.execute(query, ([lead for lead, _ in shift.app.leads],)).fetchall())


def serve() -> None:
    """Work until stdin is closed, then print what was done."""
    if not (line := sys.stdin.readline()):
        return  # it was stopped before it said what to do
    given = json.loads(line)
    app = Application(sql=Statements(**given.pop("sql")), **given)
    shift = Shift(app)
    threads = [threading.Thread(target=client, args=(shift,)) for _ in range(app.sessions)]
    if app.version == "new":
        threads.append(threading.Thread(target=learn_owners, args=(shift,)))
    for thread in threads:
        thread.start()
    try:
        print("serving", flush=True)  # noqa: T201 - for the parent
        sys.stdin.read()
        shift.ended.set()
        for thread in threads:
            thread.join()
        for one in shift.done:
            print(json.dumps(one))  # noqa: T201
        sys.stdout.flush()
    except BrokenPipeError:  # nobody is left to be told
        shift.ended.set()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    serve()
