"""What happens to the host's tables meanwhile: locks and waits every 10 ms, and long transactions in the way."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from leadprotect.database.opening import open_connection
from leadprotect.errors import ProtectionUnavailable
from leadprotect.preflight.version_table import revision
from leadprotect.settings import Settings, ident, table, url

if TYPE_CHECKING:
    import psycopg

EVERY_S = 0.01
STRONG = ("ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock")
"""Modes that ordinary reads and writes never take, the weakest first."""

_MIGRATIONS = """
    SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS a
                   WHERE a.datname = current_database() AND a.application_name = 'leadprotect migration')
    """

_PAUSE = 1.2  # between two of them, as a part of their length: a migration needs a gap to get through


@dataclass(frozen=True)
class Sample:
    """A moment at which something was to be seen; `table` is leads or activities, `granted` False while it waits."""

    at: float
    table: str
    mode: str
    granted: bool
    sessions: int
    who: str


class Sampler(threading.Thread):
    """Looks at pg_locks every 10 ms: strong locks on the host's tables, and everybody who waits for one.

    And at the revision, because only the database knows when one is done. `migrating` is set while a
    migration is connected.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="leadprotect-rehearsal-locks", daemon=True)
        self.settings = settings
        self.samples: list[Sample] = []
        self.versions: list[tuple[float, str | None]] = []
        self.looks = 0
        self.migrating, self.ended = threading.Event(), threading.Event()

    def run(self) -> None:
        """Until `ended` is set."""
        query = """
            SELECT CASE l.relation WHEN to_regclass(%(leads)s) THEN 'leads' ELSE 'activities' END, l.mode, l.granted,
                   count(*), string_agg(DISTINCT coalesce(nullif(a.application_name, ''), a.backend_type), ', ')
            FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_stat_activity AS a USING (pid)
            WHERE l.locktype = 'relation' AND l.relation IN (to_regclass(%(leads)s), to_regclass(%(activities)s))
              AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
              AND (NOT l.granted OR l.mode = ANY (%(strong)s))
            GROUP BY 1, 2, 3
            """
        s = self.settings
        activities = table(s.activities[0].table) if s.activities else None
        names = {"leads": table(s.leads_table), "activities": activities, "strong": list(STRONG)}
        with open_connection(partial(url, self.settings), application="rehearsal") as conn:
            following = time.monotonic()
            while not self.ended.wait(max(following - time.monotonic(), 0)):
                following = max(following + EVERY_S, time.monotonic())
                self.looks += 1
                self.samples += [Sample(time.time(), *found) for found in conn.execute(query, names).fetchall()]
                if conn.execute(_MIGRATIONS).fetchone() == (True,):
                    self.migrating.set()
                else:
                    self.migrating.clear()
                try:
                    present = revision(conn, s)
                except ProtectionUnavailable:
                    present = None  # its table went away between the question and the answer
                if not self.versions or self.versions[-1][1] != present:
                    self.versions.append((time.time(), present))


class LongTransactions(threading.Thread):
    """In the way of every migration: a transaction that writes `lead` and stays open, and one that only reads.

    They last `writer` and `reader` seconds, begin when the migration connects, and again after a
    pause while it runs.
    """

    def __init__(
        self, settings: Settings, edit: str, lead: str, *, migrating: threading.Event, writer: float, reader: float
    ) -> None:
        super().__init__(name="leadprotect-rehearsal-long", daemon=True)
        self.settings, self.edit, self.lead = settings, edit, lead
        self.migrating, self.writer, self.reader = migrating, writer, reader
        self.spans: list[tuple[str, float, float]] = []
        self.ended = threading.Event()

    def run(self) -> None:
        """Until `ended` is set."""
        reader = threading.Thread(target=self._repeat, args=("reader", self.reader), daemon=True)
        reader.start()
        self._repeat("writer", self.writer)
        reader.join()

    def _repeat(self, name: str, seconds: float) -> None:
        with open_connection(partial(url, self.settings), application=f"rehearsal long {name}") as conn:
            while not self.ended.is_set():
                if not self.migrating.wait(EVERY_S):
                    continue
                began = time.time()
                with conn.transaction():
                    self._read(conn) if name == "reader" else conn.execute(self.edit, (self.lead,))
                    self.ended.wait(seconds)
                self.spans.append((name, began, time.time()))
                self.ended.wait(seconds * _PAUSE)

    def _read(self, conn: psycopg.Connection[Any]) -> None:
        # it keeps its snapshot, like a report that runs for long
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        s = self.settings
        sources = [(one.table, one.id_column) for one in s.activities]
        for name, column in [(s.leads_table, s.lead_id_column), *sources]:
            conn.execute(f"SELECT {ident(column)} FROM {table(name)} LIMIT 1")
