"""Who stands in the way of a lock: the sessions, in one readable line each, without a value of a query."""

from __future__ import annotations

import logging
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("leadprotect")

_REMIND_S = 10.0


_SAMPLE_S = 0.05


# the parts of a query that may hold personal data, and quoted names, which hold none; the server
# cuts long queries, so whatever is still open at the end is hidden as well
_TOKEN = re.compile(
    r"""(?P<name>"(?:[^"]|"")*(?:"|$))
      | --[^\n]* | /\*.*?(?:\*/|$)
      | \b[eE]'(?:[^'\\]|\\.|'')*(?:'|$)
      | '(?:[^']|'')*(?:'|$)
      | \$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|$)
      | (?<![\w$])\.?\d[\w.]*""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Blocker:
    """A session that holds what we wait for; `age` in seconds since its transaction began."""

    pid: int
    age: float
    application: str
    state: str
    query: str

    def __str__(self) -> str:
        """One readable line; the query comes without its values."""
        name = self.application or "without application_name"
        return f"pid {self.pid} ({name}, {self.state}, transaction {self.age:.0f} s old): {self.query}"


@contextmanager
def watch(conn: psycopg.Connection[Any], pid: int) -> Iterator[Callable[[], list[Blocker]]]:
    """Sample who blocks session `pid` while it works; yields a function that tells the last seen."""
    seen: list[Blocker] = []
    ended = threading.Event()

    def sample() -> None:
        free = time.monotonic()
        while not ended.wait(_SAMPLE_S):
            try:
                found = blockers(conn, pid)
            except psycopg.Error:
                return  # the watch only explains; the migration itself will meet the same fate
            if not found:
                free = time.monotonic()
                continue
            seen[:] = found
            if time.monotonic() - free > _REMIND_S:  # an index build waits long, and must not wait silently
                free = time.monotonic()
                log.warning("still waiting for %s", "; ".join(map(str, found)))

    def last_seen() -> list[Blocker]:
        found = list(seen)
        seen.clear()
        return found

    thread = threading.Thread(target=sample, name="leadprotect-watch", daemon=True)
    thread.start()
    try:
        yield last_seen
    finally:
        ended.set()
        thread.join()


def blockers(conn: psycopg.Connection[Any], pid: int) -> list[Blocker]:
    """Sessions that block session `pid` right now, the oldest transaction first."""
    # pid 0 stands for a prepared transaction, which has no session
    found = conn.execute(
        """
        SELECT DISTINCT blocking.pid, coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8,
               coalesce(a.application_name, ''),
               CASE WHEN blocking.pid = 0 THEN 'prepared transaction, see pg_prepared_xacts'
                    ELSE coalesce(a.state, a.backend_type, 'state hidden from this role') END,
               coalesce(a.query, '')
        FROM unnest(pg_catalog.pg_blocking_pids(%s)) AS blocking (pid)
        LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = blocking.pid
        ORDER BY 2 DESC, 1
        """,
        (pid,),
    ).fetchall()
    return [Blocker(row[0], row[1], row[2], row[3], redact(row[4])) for row in found]


def redact(query: str) -> str:
    """A query without its values and comments: they may be personal data."""
    hidden = _TOKEN.sub(lambda match: match["name"] or "?", query)
    return " ".join(hidden.split())[:120]


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of the driver's error, also when SQLAlchemy wrapped it; None without one."""
    return getattr(getattr(error, "orig", error), "sqlstate", None)
