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
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from leadprotect import phases
from leadprotect.backfilling.jobs import pause_backfill
from leadprotect.database.connection import connect
from leadprotect.database.drivers import driver_connection
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.errors import InvalidRequest, LockUnavailable, RollbackError
from leadprotect.migration import inventory, steps, undo, undoing
from leadprotect.preflight import check
from leadprotect.preflight.columns import in_text
from leadprotect.preflight.version_table import revision
from leadprotect.preflight.way_down import check_way_down
from leadprotect.settings import Settings, duration, load
from leadprotect.settings.files import ini_file, migrations
from leadprotect.settings.load import check_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leadprotect.migration.undo import Undo


SAFE = phases.before("contract")[-1]
"""The last revision that enforces nothing on the host's tables: everything but contract."""


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

    Revisions of a newer version are undone by what they left in our schema. Raises `InvalidRequest` when
    `target` is no revision below the present one, or a newer version left nothing; `PreflightError` on a
    replica or through a pooler; `RollbackError` when it stopped on the way; every step that is done is
    committed, and the same call goes on.
    """
    alembic = config or alembic_config()
    s = load(alembic)
    log = _Log(on_event)
    if lock_budget:
        duration("lock_budget", lock_budget)
    with mapped_errors(), connect(s) as conn:
        check.check_server(conn)
        s = in_text(conn, s)
        before = revision(conn, s)
        scripts = ScriptDirectory.from_config(alembic)
        newer = _newer(conn, s, before, target)
        path = _path(scripts, newer[-1].down_revision if newer else before, target)
        if not path and not newer:
            return Rollback(before, before, (), {}, ())
        with EnvironmentContext(alembic, scripts, destination_rev=target):
            script = undoing.script([scripts.get_revision(name) for name in path])
        check_way_down(conn, s, ";\n".join([*(said for one in newer for said in one.statements), script]))
        seen, rows = inventory.take(conn, s), inventory.count(conn, s)
        log.done(f"looked at {len(seen.tables)} tables")
        if paused := pause_backfill(conn, s, "leadprotect rollback"):
            log.done(f"paused the backfill of {', '.join(paused)}")
        try:
            _undo_newer(s, newer, seen, log, lock_budget)
            if path:
                with _watched(alembic, s, seen, log, lock_budget):
                    command.downgrade(alembic, target)
        except (CommandError, LockUnavailable, psycopg.Error) as error:
            raise RollbackError(f"{str(error).strip()}\n{_stopped(before, revision(conn, s))}") from None
        now, rows_now = inventory.take(conn, s), inventory.count(conn, s)
        problems = inventory.opened(seen, now) + inventory.left_on_host(seen, now)
        problems += inventory.lost_rows(seen, now, rows, rows_now)
        after = revision(conn, s)
        log.done(f"verified {len(now.tables)} tables")
    names = sorted(rows.keys() | rows_now.keys())
    counted = {name: (rows.get(name), rows_now.get(name)) for name in names}
    return Rollback(before, after, tuple(log.events), counted, tuple(problems))


def alembic_config() -> Config:
    """Alembic's config from our ini file; where that knows nothing of ours, with our own revisions."""
    here = ini_file()
    check_readable(here)
    config = Config(str(here)) if here.exists() else Config()
    config.attributes["configure_logger"] = False
    try:
        ScriptDirectory.from_config(config).get_revision(SAFE)
    except CommandError:
        config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    return config


def _newer(conn: psycopg.Connection[Any], s: Settings, present: str | None, target: str) -> list[Undo]:
    """How the revisions of a newer version above `target` are undone, the newest first; empty where none is applied."""
    found: list[Undo] = []
    if present is None or present in phases.chain():
        return found
    kept = undo.kept_undo(conn, s)
    name: str | None = present
    while name and name != target and name not in phases.chain():
        if name not in kept:
            raise InvalidRequest(
                f"{name} was applied by a newer version of leadprotect and left no way down: "
                "roll back with that version"
            )
        found.append(kept[name])
        name = kept[name].down_revision
    return found


def _undo_newer(s: Settings, newer: list[Undo], seen: inventory.Inventory, log: _Log, lock_budget: str | None) -> None:
    if not newer:
        return
    with steps.in_steps(s, lock_budget=lock_budget) as down:
        for one in newer:
            *parts, last = one.parts()
            for inside, statements in parts:
                for statement in statements if not inside else ():
                    down.alone(statement)
                if inside and statements:
                    down.step(partial(_execute, statements=statements))
            down.step(partial(_finish, s=s, one=one, statements=last[1], seen=seen))
            log.done(f"undid {one.revision}, by what it left")


def _execute(conn: psycopg.Connection[Any], statements: list[str]) -> None:
    for statement in statements:
        conn.execute(statement.encode())


def _finish(
    conn: psycopg.Connection[Any], s: Settings, one: Undo, statements: list[str], seen: inventory.Inventory
) -> None:
    _execute(conn, [*statements, *undo.done(one, s)])
    if found := inventory.opened(seen, inventory.take(conn, s)):
        raise RollbackError(f"{one.revision} would open row security: {'; '.join(found)}")


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
    if present not in (None, *phases.chain()):
        return []  # the target is one of a newer version, too
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
