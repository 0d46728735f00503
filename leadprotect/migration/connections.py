"""The connections of a migration: one that the revisions run on, and sessions beside it that look.

Each is pinned to what we rely on, whatever the engine of a host or the role's own settings say.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import context
from sqlalchemy import Connection, Engine, create_engine, event, pool

from leadprotect.database.opening import open_connection, pin, pin_session
from leadprotect.errors import SettingsError
from leadprotect.migration import locks
from leadprotect.settings import url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.settings import Settings


def connectable(settings: Settings) -> Engine:
    """The engine that a host gave to Alembic's config, or one of our own; raises `SettingsError` for anything else."""
    given = context.config.attributes.get("connection")
    if isinstance(given, Engine) and given.dialect.driver == "psycopg":
        return given
    if given is not None:
        raise SettingsError("config.attributes['connection'] must be an Engine of postgresql+psycopg")
    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: open_connection(lambda: url(settings), application=locks.APPLICATION, autocommit=False),
        poolclass=pool.NullPool,
    )


@contextmanager
def side_connection(engine: Engine) -> Iterator[psycopg.Connection[Any]]:
    """A session of its own, in autocommit: it never holds a transaction that a build waits for."""
    with _checked_out(engine) as conn:
        pin_session(conn, lambda: _checked_out(engine), more={"application_name": locks.APPLICATION})
        yield conn


@contextmanager
def _checked_out(engine: Engine) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the engine, which a host may have made; it never goes back as we leave it."""
    raw = engine.raw_connection()
    try:
        conn: psycopg.Connection[Any] = raw.driver_connection  # type: ignore[assignment]
        conn.autocommit = True
        yield conn
    finally:
        raw.invalidate()


@contextmanager
def migration_connection(engine: Engine, lost: locks.Budget) -> Iterator[tuple[Connection, int]]:
    """The connection that the revisions run on, and the process id of its session."""
    # the engine of a host may come with another level, or with none at all
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
        driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
        driver.autocommit = True
        pid = pin_session(driver, lambda: _checked_out(engine))
        driver.autocommit = False

        @event.listens_for(connection, "begin")
        def limit_lock_waits(conn: Connection) -> None:
            # again for each transaction: a SET is undone by a rollback, and a step may have changed it;
            # an index build blocks nobody while it waits, so it may wait as long as the budget lasts
            session: psycopg.Connection[Any] = conn.connection.driver_connection  # type: ignore[assignment]
            rest = max(int(lost.rest * 1000), locks.LOCK_TIMEOUT_MS)
            try:
                pin(session, pid=pid, lock_timeout=locks.LOCK_TIMEOUT_MS, more={"leadprotect.lock_budget": f"{rest}ms"})
            except psycopg.OperationalError as error:
                conn.invalidate(error)  # or the pool would try to roll back what is lost, and say so at length
                raise

        try:
            yield connection, pid
        finally:
            connection.invalidate()
