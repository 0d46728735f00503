"""Several statements in one exchange with a server, and what it answers to each.

A statement that waits for the answer to the one before it costs a round trip, and on one machine two switches of
process; what is known beforehand is sent at once. https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import tuple_row

from leadprotect.database.sqlstates import mapped_errors, naming_primary
from leadprotect.errors import ConnectionUnusable, LeadProtectError

if TYPE_CHECKING:
    from collections.abc import Sequence

    Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Sent:
    """A statement with its values; `recording`: it writes to the audit, so what keeps it from that says so."""

    statement: str
    params: tuple[Any, ...] = ()
    recording: bool = False


BEGIN, COMMIT = Sent("BEGIN"), Sent("COMMIT")


@dataclass(frozen=True)
class Answers:
    """The rows of each statement, up to one that failed; after it nothing was done."""

    found: tuple[Rows, ...]
    failed: LeadProtectError | None

    def __getitem__(self, place: int) -> Rows:
        """The rows of the statement at this place; raises the error that came before it, or instead of it."""
        if self.failed and place >= len(self.found):
            raise self.failed
        return self.found[place]

    def of(self, first: int, count: int) -> list[Rows]:
        """Those of `count` statements from the `first` on."""
        return [self[place] for place in range(first, first + count)]

    def all_done(self) -> Answers:
        """The same, if none has failed."""
        if self.failed:
            raise self.failed
        return self


def exchange(conn: psycopg.Connection[Any], asked: Sequence[Sent]) -> Answers:
    """Send these statements at once and wait for all answers; the server does none after one that fails.

    In autocommit, so that BEGIN and COMMIT among them mean what they say. Raises nothing of the server's.
    """
    cursors: list[psycopg.Cursor[tuple[Any, ...]]] = []
    failed: LeadProtectError | None = None
    try:
        with conn.pipeline():
            for one in asked:
                cursors.append(conn.cursor(row_factory=tuple_row))
                cursors[-1].execute(one.statement, one.params)
    except (psycopg.Error, UnicodeError) as error:
        cursors = cursors[: _answered(cursors)]
        failed = _mapped(conn, error, recording=asked[min(len(cursors), len(asked) - 1)].recording)
    return Answers(tuple(cursor.fetchall() if cursor.description else [] for cursor in cursors), failed)


def undo(*conns: psycopg.Connection[Any]) -> None:
    """Roll back whatever stands on these connections; on one that is lost the server does."""
    for conn in conns:
        with suppress(psycopg.Error):
            conn.rollback()


def _answered(cursors: Sequence[psycopg.Cursor[Any]]) -> int:
    """How many came before the one that failed: nothing has an answer after it."""
    return next((place for place, cursor in enumerate(cursors) if cursor.pgresult is None), len(cursors))


def _mapped(conn: psycopg.Connection[Any], error: Exception, *, recording: bool) -> LeadProtectError:
    try:
        with mapped_errors(recording=recording):
            raise error
    except ConnectionUnusable as found:
        return naming_primary(conn, found) if not conn.closed else found
    except LeadProtectError as found:
        return found
