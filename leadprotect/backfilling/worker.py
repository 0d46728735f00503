"""One worker of a backfill: claims chunks, commits slices, and gives way to every live transaction."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.backfilling.sessions import RECONNECT_S, connection_lost
from leadprotect.backfilling.slices import Bisection, Controller
from leadprotect.database.opening import open_connection
from leadprotect.errors import BackfillError
from leadprotect.settings import Settings, render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.backfilling.throttle import Throttle
    from leadprotect.database.opening import Address

LOCK_TIMEOUT_MS = 50
"""Below the service's 250 ms, so that of two who wait for each other the backfill gives up first."""

STATEMENT_TIMEOUT_MS = 200
"""A slice holds its rows at most that long, so a live write never waits into its own 250 ms."""

VICTIM = ("55P03", "57014", "40P01", "40001")
"""lock_not_available, query_canceled, deadlock_detected, serialization_failure."""


_TIMED_OUT = "57014"
_GIVES_WAY = f"SET lock_timeout = {LOCK_TIMEOUT_MS}; SET statement_timeout = {STATEMENT_TIMEOUT_MS}"
_LEASE_LOST = "LP410"
_BOOKKEEPING_S = 10  # claiming and giving back a chunk takes no lock that a service could feel
_CLAIM_WAITS_S = 1  # then it says so, and asks again
_SLOW_CLAIM = f"to claim a chunk takes longer than {_BOOKKEEPING_S} s: a smaller --batch-size helps"
_IDLE_S = 5  # no session of ours is idle in a transaction; one that were must not hold the others
_POLL_S = 0.2
# so many locked rows in a row are no row locks: somebody holds the table
_ROWS_BEFORE_A_STALL = 3
_LONGEST_STALL_S = 30.0


@dataclass
class Run:
    """What the workers of one process share; `lease` in seconds."""

    settings: Settings
    address: Address
    territories: tuple[str, ...]
    batch_size: int
    lease: float
    throttle: Throttle
    stopping: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)
    slice_rows: int = 0
    waiting: str | None = None

    def connect(self) -> psycopg.Connection[Any]:
        """A session that gives way: short waits for locks, short statements, commits that wait for no disk.

        A crash of the server may undo the last slices, but together with their cursors.
        """
        conn = open_connection(self.address, application="leadprotect backfill")
        conn.execute(
            f"{_GIVES_WAY}; SET synchronous_commit = off; SET idle_in_transaction_session_timeout = '{_IDLE_S}s'"
        )
        return conn


class Worker(threading.Thread):
    """Works on the chunks of all territories until none is left or the run is stopped."""

    def __init__(self, run: Run, number: int) -> None:
        super().__init__(name=f"leadprotect-backfill-{number}", daemon=True)
        self.job = run
        self.label = f"{socket.gethostname()}:{os.getpid()}:{number}"
        self.controller = Controller()
        # waited for instead of join(), which Ctrl-C makes believe that the thread is over (before Python 3.13)
        self.ended = threading.Event()
        self._conn: psycopg.Connection[Any] | None = None

    def run(self) -> None:
        """Never raises: the error is kept for the main thread, and ends the other workers."""
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - a thread's error must reach the main thread
            self.job.errors.append(error)
            self.job.stopping.set()
        finally:
            if self._conn is not None:
                self._conn.close()
            self.ended.set()

    def _work(self) -> None:
        while not self.job.stopping.is_set():
            # a chunk of a worker that died is claimed when its lease is over
            left = [territory for territory in self.job.territories if self._work_on(territory)]
            if not left:
                return
            held = [territory for territory in left if not self.job.throttle.paused(territory)]
            # of the others the throttle says that they are paused
            self.job.waiting = f"waiting for another worker's chunk of {', '.join(held)}" if held else None
            self.job.stopping.wait(_POLL_S)

    def _work_on(self, territory: str) -> bool:
        """Work on all chunks that can be had; whether some are left: others hold them, or it is paused."""
        while self.job.throttle.proceed(territory, self.job.stopping):
            claimed = self._claim(territory)
            if claimed is None:
                self.job.stopping.wait(_POLL_S)
                continue
            chunk, token, left = claimed
            if chunk is None:
                return bool(left)
            self.job.waiting = None
            self._slices(territory, chunk, token)
        return True

    def _claim(self, territory: str) -> tuple[int | None, int | None, bool] | None:
        """A chunk and its token, and whether others work on one; None if another claim was faster."""
        query = """
            SELECT c.chunk, c.token, EXISTS (
              SELECT FROM {schema}.backfill_chunks AS o WHERE o.territory = %s AND o.finished_at IS NULL)
            FROM {schema}.backfill_claim(%s, %s, %s, make_interval(secs => %s)) AS c
            """
        values = (territory, territory, self.job.batch_size, self.label, self.job.lease)
        try:
            with self._patient(_CLAIM_WAITS_S):
                return self._session().execute(render(query, self.job.settings), values).fetchone()
        except psycopg.Error as error:
            if error.sqlstate in VICTIM:
                slow = error.sqlstate == _TIMED_OUT
                self.job.waiting = _SLOW_CLAIM if slow else f"another session holds the job of {territory}"
            elif not self._lost(error):
                raise
            return None

    def _slices(self, territory: str, chunk: int, token: int | None) -> None:
        bisection = Bisection()
        while self.job.throttle.proceed(territory, self.job.stopping):
            rows = bisection.rows or self.controller.rows
            began = time.monotonic()
            try:
                scanned, _, finished = self._call("backfill_slice", territory, chunk, token, rows)
            except psycopg.Error as error:
                if error.sqlstate == _LEASE_LOST:
                    return
                if not self._lost(error):
                    self._give_way(error, bisection, rows, (territory, chunk, token))
                continue
            seconds = time.monotonic() - began
            if scanned or finished:
                self.job.waiting = None
                self.controller.observe(scanned, seconds)
                bisection.passed(scanned, self.controller.rows)
                self.job.slice_rows = self.controller.rows
            if finished:
                return
            self.job.throttle.pace(seconds, self.job.stopping)
        self._release(territory, chunk, token)

    def _release(self, territory: str, chunk: int, token: int | None) -> None:
        """Give the chunk back, so that the next run need not wait until its lease is over."""
        try:
            with self._patient(_BOOKKEEPING_S):
                self._call("backfill_release", territory, chunk, token)
        except psycopg.Error as error:
            if error.sqlstate not in VICTIM and not self._lost(error):
                raise

    def _give_way(
        self, error: psycopg.Error, bisection: Bisection, rows: int, part: tuple[str, int, int | None]
    ) -> None:
        """The slice was the victim: cut it, or put its only row aside."""
        if error.sqlstate not in VICTIM:
            raise error
        if slow := error.sqlstate == _TIMED_OUT:
            self.controller.observe(rows, STATEMENT_TIMEOUT_MS / 1000)
        if rows > 1:
            bisection.failed(rows, slow=slow)
            return
        bisection.locked += 1
        if not self._stalled(bisection.locked) and self._defer(*part, str(error.sqlstate)):
            bisection.put_aside()

    def _stalled(self, locked: int) -> bool:
        """Wait, instead of putting all rows aside, where somebody holds more than a row."""
        if locked <= _ROWS_BEFORE_A_STALL:
            return False
        self.job.waiting = "every row is locked: a session holds the table, or the server stalls"
        self.job.stopping.wait(min(2.0 ** (locked - _ROWS_BEFORE_A_STALL - 1), _LONGEST_STALL_S))
        return True

    def _defer(self, territory: str, chunk: int, token: int | None, reason: str) -> bool:
        try:
            self._call("backfill_defer", territory, chunk, token, reason)
        except psycopg.Error as error:
            if error.sqlstate not in VICTIM:
                raise
            return False
        return True

    def _call(self, function: str, *arguments: Any) -> Any:
        marks = ", ".join(["%s"] * len(arguments))
        statement = f"SELECT * FROM {render('{schema}', self.job.settings)}.{function}({marks})"
        return self._session().execute(statement, arguments).fetchone()

    @contextmanager
    def _patient(self, lock_s: int) -> Iterator[None]:
        """The session's, not a transaction's: a process frozen between two statements would hold the others."""
        conn = self._session()
        conn.execute(f"SET statement_timeout = '{_BOOKKEEPING_S}s'; SET lock_timeout = '{lock_s}s'")
        try:
            yield
        finally:
            if not conn.closed:
                conn.execute(_GIVES_WAY)

    def _session(self) -> psycopg.Connection[Any]:
        if self._conn is None or self._conn.closed:
            self._conn = self.job.connect()
        return self._conn

    def _lost(self, error: psycopg.Error) -> bool:
        """Whether the connection was lost and is there again: the cursor in the database says where to go on."""
        if not connection_lost(error):
            return False
        began = time.monotonic()
        while not self.job.stopping.is_set():
            self.job.waiting = "the connection to the database is lost"
            try:
                self._conn = self.job.connect()
            except psycopg.OperationalError as again:
                if time.monotonic() - began > RECONNECT_S:
                    raise BackfillError(f"no connection to the database for {RECONNECT_S:.0f} s: {again}") from None
                self.job.stopping.wait(1.0)
            else:
                return True
        return True
