"""Go back to the last safe revision: pause, downgrade, verify, and tell what happened when.

``alembic downgrade`` does the same to the database. This is the command for somebody who is on
call: each step is checked before it is committed, and the rows are counted before and after.
"""

from __future__ import annotations

import time
from argparse import Namespace
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from leadprotect import inventory, preflight
from leadprotect._sql import connect, driver_connection, mapped_errors
from leadprotect.errors import InvalidRequest, RollbackError
from leadprotect.locks import parse_budget
from leadprotect.paths import ini_file, migrations
from leadprotect.settings import Settings, ident, load
from leadprotect.status import known, revision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

SAFE = "lp_0006_migrate_backfill"
"""The last revision that enforces nothing on the host's tables: everything but contract."""

PAUSE_S = 5.0
"""How long a running backfill is waited for; a downgrade that meets one wins, so it need not be long."""

_FIRST = "lp_0001_expand_tables"
_QUIET_S = 1.2  # workers read the request once a second
_POLL_S = 0.05


@dataclass(frozen=True)
class Event:
    """Something that happened: when it was done (UTC), and how many seconds it took."""

    at: datetime
    what: str
    seconds: float


@dataclass(frozen=True)
class Rollback:
    """What a rollback did; `rows` maps a table to its rows before and after, None where not counted.

    `before` and `after` are revisions, None for the base. `problems` is empty when everything was
    found as it must be.
    """

    before: str | None
    after: str | None
    timeline: tuple[Event, ...]
    rows: dict[str, tuple[int | None, int | None]]
    problems: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """All steps together."""
        return sum(event.seconds for event in self.timeline)


@dataclass
class _Log:
    """Measures each step from the end of the one before it."""

    tell: Callable[[Event], None] | None
    events: list[Event] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def done(self, what: str) -> None:
        event = Event(datetime.now(UTC), what, time.perf_counter() - self.began)
        self.events.append(event)
        if self.tell:
            self.tell(event)
        self.began = time.perf_counter()


def rollback(
    target: str = SAFE,
    *,
    config: Config | None = None,
    lock_budget: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Rollback:
    """Go down to the revision `target` (or "base") of the database that the settings name.

    A running backfill is paused first. Each step is looked at inside its own transaction: one that
    would open row security on a table of ours is not committed. At the end the tables, their
    rows, and the flags of the host's leads are verified. `config` is Alembic's, by default that of
    our ini file, `lock_budget` as in ``-x lock_budget=60s``.

    Raises `InvalidRequest` when `target` is no revision below the present one, or that is one of a
    newer version; `PreflightError` on a replica or through a pooler; `RollbackError` when it stopped
    on the way; every step that is done is committed, and the same call goes on.
    """
    alembic = config or alembic_config()
    s = load(alembic)
    log = _Log(on_event)
    if lock_budget:
        parse_budget(lock_budget)
    with mapped_errors(), connect(s) as conn:
        preflight.check_direct(conn, lambda: connect(s))
        preflight.check_server(conn)
        before = revision(conn, s)
        path = _path(ScriptDirectory.from_config(alembic), before, target)
        if not path:
            return Rollback(before, before, (), {}, ())
        seen, rows = inventory.take(conn, s), inventory.count(conn, s)
        log.done(f"looked at {len(seen.tables)} tables")
        if paused := pause_backfill(conn, s, "leadprotect rollback"):
            log.done(f"paused the backfill of {', '.join(paused)}")
        try:
            with _watched(alembic, s, seen, log, lock_budget):
                command.downgrade(alembic, target)
        except CommandError as error:
            raise RollbackError(f"{error}\n{_stopped(before, revision(conn, s))}") from None
        now, rows_now = inventory.take(conn, s), inventory.count(conn, s)
        problems = inventory.opened(seen, now) + inventory.left_on_host(seen, now)
        problems += inventory.lost(seen, now, rows, rows_now)
        after = revision(conn, s)
        log.done(f"verified {len(now.tables)} tables")
    names = sorted(rows.keys() | rows_now.keys())
    counted = {name: (rows.get(name), rows_now.get(name)) for name in names}
    return Rollback(before, after, tuple(log.events), counted, tuple(problems))


def alembic_config() -> Config:
    """Alembic's config from our ini file; where that knows nothing of ours, with our own revisions."""
    here = ini_file()
    config = Config(str(here)) if here.exists() else Config()
    config.attributes["configure_logger"] = False
    try:
        ScriptDirectory.from_config(config).get_revision(_FIRST)
    except CommandError:
        config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    return config


def pause_backfill(conn: psycopg.Connection[Any], settings: Settings, reason: str) -> list[str]:
    """Ask every unfinished backfill to pause, and wait until none is in a slice; returns the territories.

    `conn` is in autocommit, so that the workers see the request. One that does not answer within
    `PAUSE_S` seconds is no obstacle: its slice is one transaction, and gives way to any other.
    """
    schema = ident(settings.schema)
    if conn.execute("SELECT to_regclass(%s)", (f"{schema}.backfill_jobs",)).fetchone() == (None,):
        return []
    unfinished = conn.execute(
        f"SELECT territory FROM {schema}.backfill_jobs "
        "WHERE started_at IS NOT NULL AND ended_at IS NULL AND request = 'run' ORDER BY territory"
    ).fetchall()
    for (territory,) in unfinished:
        conn.execute(f"SELECT {schema}.backfill_request(%s, 'pause', %s)", (territory, reason))
    if unfinished:
        _wait_for_workers(conn, f"{schema}.backfill_chunks")
    return [territory for (territory,) in unfinished]


def _wait_for_workers(conn: psycopg.Connection[Any], chunks: str) -> None:
    """Until no session of a backfill is left, or none has touched its chunks for a while."""
    query = """
        SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS a
                       WHERE a.application_name = 'leadprotect backfill' AND a.datname = current_database()),
               EXISTS (SELECT FROM pg_catalog.pg_locks AS l
                       WHERE l.relation = %s::regclass AND l.pid <> pg_catalog.pg_backend_pid())
        """
    end = time.monotonic() + PAUSE_S
    quiet_since = time.monotonic()
    while time.monotonic() < end:
        alive, busy = conn.execute(query, (chunks,)).fetchall()[0]
        if busy:
            quiet_since = time.monotonic()
        if not alive or time.monotonic() - quiet_since > _QUIET_S:
            return
        time.sleep(_POLL_S)


@contextmanager
def _watched(
    config: Config, settings: Settings, before: inventory.Inventory, log: _Log, lock_budget: str | None
) -> Iterator[None]:
    """Have every step checked in its own transaction, by the hook that Alembic offers for it."""

    def applied(*, ctx: Any, step: Any, **_: Any) -> None:
        now = inventory.take(driver_connection(ctx.connection), settings)  # type: ignore[arg-type] # never async
        if found := inventory.opened(before, now):
            raise RollbackError(f"{step.up_revision_id} would open row security: {'; '.join(found)}")
        log.done(f"undid {step.up_revision_id}")

    given = config.cmd_opts
    config.attributes["on_version_apply"] = applied
    if lock_budget:
        config.cmd_opts = Namespace(x=[f"lock_budget={lock_budget}"])
    try:
        yield
    finally:
        config.attributes.pop("on_version_apply")
        config.cmd_opts = given


def _stopped(before: str | None, now: str | None) -> str:
    if now == before:
        return f"Nothing was undone: the database stands at {before}"
    return f"The rollback stopped at {now or 'the base'}; the same command goes on"


def _path(scripts: ScriptDirectory, present: str | None, target: str) -> list[str]:
    """The revisions to undo, the newest first; empty when there is nothing to undo."""
    if present and present not in known(scripts):
        raise InvalidRequest(f"{present} was applied by a newer version of leadprotect: roll back with that version")
    try:
        wanted = None if target == "base" else scripts.get_revision(target)
    except CommandError as error:
        raise InvalidRequest(f"--to {target}: {error}") from None
    applied = [found.revision for found in scripts.iterate_revisions(present, "base")] if present else []
    if wanted is None:
        return applied
    if wanted.revision in applied:
        return applied[: applied.index(wanted.revision)]
    if target == SAFE:
        return []
    raise InvalidRequest(
        f"--to {target}: not below {present or 'the base'}, which is applied; a rollback never upgrades"
    )
