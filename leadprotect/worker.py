"""One worker of a backfill: claims chunks, commits slices, and is always the victim of a lock."""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.controller import Controller
from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    from collections.abc import Callable

LOCK_TIMEOUT_MS = 50
"""Below the service's 250 ms, so that of two who wait for each other the backfill gives up first."""

STATEMENT_TIMEOUT_MS = 200
"""A slice holds its rows at most that long, so a live write never waits into its own 250 ms."""

VICTIM = ("55P03", "57014", "40P01", "40001")
"""lock_not_available, query_canceled, deadlock_detected, serialization_failure."""

LEASE_LOST = "LP410"
DIVISOR = 8
_POLL_S = 0.2
_STALLED_AFTER = 3
_LONGEST_STALL_S = 30.0


@dataclass
class Run:
    """What the workers of one process share; times in seconds."""

    settings: Settings
    conninfo: str
    territories: tuple[str, ...]
    batch_size: int
    lease: float
    pace: Callable[[float], None] = lambda _seconds: None
    stopping: threading.Event = field(default_factory=threading.Event)
    failed: list[BaseException] = field(default_factory=list)
    scanned: dict[str, int] = field(default_factory=dict)
    assigned: dict[str, int] = field(default_factory=dict)
    deferred: int = 0
    slice_rows: int = 0
    waiting: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, territory: str, scanned: int, assigned: int) -> None:
        """Add what a committed slice did."""
        with self.lock:
            self.scanned[territory] = self.scanned.get(territory, 0) + scanned
            self.assigned[territory] = self.assigned.get(territory, 0) + assigned

    def call(self, function: str, arguments: str) -> str:
        """SQL of a call of one of our functions."""
        return f"SELECT * FROM {ident(self.settings.schema)}.{function}({arguments})"


def connect(run: Run) -> psycopg.Connection[Any]:
    """A session that gives way: short waits for locks, short statements, commits that wait for no disk.

    A crash of the server may undo the last slices together with their cursors, so nothing is lost.
    """
    conn: psycopg.Connection[Any] = psycopg.connect(
        run.conninfo, autocommit=True, application_name="leadprotect backfill"
    )
    conn.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_MS}ms'")
    conn.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT_MS}ms'")
    conn.execute("SET synchronous_commit = off")
    conn.execute("SET default_transaction_isolation = 'read committed'")
    return conn


class Worker(threading.Thread):
    """Works on the chunks of all territories until none is left or the run is stopped."""

    def __init__(self, run: Run, number: int) -> None:
        super().__init__(name=f"leadprotect-backfill-{number}", daemon=True)
        self.job = run
        self.label = f"{socket.gethostname()}:{os.getpid()}:{number}"
        self.controller = Controller()
        self.conn: psycopg.Connection[Any] | None = None

    def run(self) -> None:
        """Never raises: the error is kept for the main thread, and ends the other workers."""
        try:
            for territory in self.job.territories:
                while not self.job.stopping.is_set() and self._next_chunk(territory):
                    pass
        except BaseException as error:  # noqa: BLE001 - a thread's error must reach the main thread
            self.job.failed.append(error)
            self.job.stopping.set()
        finally:
            if self.conn is not None:
                self.conn.close()

    def _next_chunk(self, territory: str) -> bool:
        run = self.job
        found = self._row(
            run.call("backfill_claim", "%s, %s, %s, make_interval(secs => %s)"),
            (territory, run.batch_size, self.label, run.lease),
        )
        if found is None:
            return True
        chunk, token = found
        if chunk is None:
            return False
        self._work(territory, chunk, token)
        return True

    def _work(self, territory: str, chunk: int, token: int) -> None:
        limit = None  # rows of the slices of a stretch in which one is locked
        stretch = 0
        stalls = 0
        while not self.job.stopping.is_set():
            rows = self.controller.rows if limit is None else limit
            began = time.monotonic()
            try:
                scanned, assigned, finished = self._call("backfill_slice", (territory, chunk, token, rows))
            except psycopg.Error as error:
                if error.sqlstate == LEASE_LOST:
                    return
                if error.sqlstate not in VICTIM:
                    raise
                if limit is None:
                    stretch = rows
                if rows > 1:
                    limit = max(rows // DIVISOR, 1)
                    continue
                stalls += 1
                if stalls > _STALLED_AFTER:
                    self.job.stopping.wait(min(2.0 ** (stalls - _STALLED_AFTER), _LONGEST_STALL_S))
                    continue
                self._call("backfill_defer", (territory, chunk, token, str(error.sqlstate)))
                self.job.deferred += 1
                self.job.count(territory, 1, 0)
                limit = None
                continue
            seconds = time.monotonic() - began
            stalls = 0
            self.controller.observe(scanned, seconds)
            if limit is not None:
                stretch -= scanned
                limit = limit if stretch > 0 else None
            self.job.slice_rows = self.controller.rows
            self.job.count(territory, scanned, assigned)
            if finished:
                return
            self.job.pace(seconds)

    def _call(self, function: str, arguments: tuple[Any, ...]) -> Any:
        return self._row(self.job.call(function, ", ".join(["%s"] * len(arguments))), arguments)

    def _row(self, statement: str, arguments: tuple[Any, ...]) -> Any:
        if self.conn is None:
            self.conn = connect(self.job)
        return self.conn.execute(statement, arguments).fetchone()
