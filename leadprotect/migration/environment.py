"""Alembic's environment: applies the revisions to a live database without stopping it.

Rules of this file, each with a test in tests/migrations/test_env.py: one transaction per revision;
a lock_timeout for each of them; retries inside a budget that name who blocks; one upgrade at a time;
nothing is executed on the migration's connection before `context.configure()`; a preflight before
anything is touched; and no contract revision while its gate is closed.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, contextmanager, suppress
from logging.config import fileConfig
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import context
from alembic.runtime.migration import RevisionStep
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, exc, pool

from leadprotect.backfilling import jobs
from leadprotect.database import blockers
from leadprotect.database.catalog import relation
from leadprotect.errors import GateClosed, LeadProtectError, SettingsError
from leadprotect.migration import gate, locks
from leadprotect.preflight import check
from leadprotect.preflight.installed import check_installed
from leadprotect.settings import Settings, ident, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("leadprotect")

# Everything the revisions write is schema-qualified; the rest must mean what pg_catalog says.
SEARCH_PATH = "SET search_path = pg_catalog"
LOCK_TIMEOUT = f"SET lock_timeout = '{locks.LOCK_TIMEOUT_MS}ms'"
GATE_CLOSED = "LP409"
POOLER_REFUSED = "08P01"  # what PgBouncer answers with when it can't do as it is asked
CONNECTION_LOST = ("08", "57P")  # classes of SQLSTATE; an error without one comes from the client side
NAMES_OBJECTS = "2B"  # the detail of dependent objects; other details may hold personal data


def run() -> None:
    """Do what the running Alembic command asks for; raises `CommandError`, one finished sentence, where it can't."""
    config = context.config
    own_logging = config.attributes.get("configure_logger", True) and config.file_config.has_section("loggers")
    if own_logging and config.config_file_name is not None:
        fileConfig(config.config_file_name, disable_existing_loggers=False)
        _say_errors_once()
    try:
        options = _read_options()
        settings = load(config)
        if context.is_offline_mode():
            _run_offline(settings, contract=options["contract"])
        else:
            _run_online(settings, **options)
    except LeadProtectError as error:
        raise CommandError(str(error)) from None
    except (exc.DBAPIError, exc.PendingRollbackError, psycopg.Error, KeyboardInterrupt) as error:
        log.debug("the statement that failed", exc_info=True)
        raise CommandError(_explained(error)) from None


def _say_errors_once() -> None:
    """Alembic prints the error with which it ends to stdout, and logs it to stderr: a terminal shows both."""
    with suppress(OSError):  # one of them may be closed
        if os.path.sameopenfile(1, 2):
            logging.getLogger("alembic.util.messaging").setLevel(logging.CRITICAL)


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C came first: it ends the connection, and what is tidied up then fails for want of one."""
    return isinstance(error, KeyboardInterrupt) or (error is not None and _interrupted(error.__context__))


def _explained(error: BaseException) -> str:
    """The server's answer without row values: a user's mistake never shows a stack trace."""
    if _interrupted(error):
        return "interrupted; nothing is half done: run the same command again"
    state = blockers.sqlstate(error)
    origin: Any = getattr(error, "orig", error)
    if state is None or state.startswith(CONNECTION_LOST):
        lost = isinstance(error, exc.PendingRollbackError)  # SQLAlchemy noticed it before the driver could say so
        reason = "it was lost" if lost else " ".join(str(origin).split())
        if state == POOLER_REFUSED:
            return f"a pooler stands before the database: {reason}; set DATABASE_URL to the server itself"
        return f"no connection to the database: {reason}. Nothing is half done: run the same command again"
    said = origin.diag
    parts = [said.message_primary, said.message_detail if state.startswith(NAMES_OBJECTS) else None, said.message_hint]
    text = ". ".join(part.rstrip(".") for part in parts if part)
    return text if state == GATE_CLOSED else f"{text} (SQLSTATE {state})"


def _read_options() -> dict[str, Any]:
    """The -x arguments: contract=auto|require|hold and lock_budget=60s."""
    given = context.get_x_argument(as_dictionary=True)
    unknown = sorted(set(given) - {"contract", "lock_budget"})
    if unknown:
        raise SettingsError(f"-x {unknown[0]}: unknown; known are contract and lock_budget")
    contract = given.get("contract", "auto")
    if contract not in ("auto", "require", "hold"):
        raise SettingsError(f"-x contract={contract}: only waiting or data opens the gate; use auto, require or hold")
    return {
        "contract": contract,
        "budget": locks.parse_budget(given["lock_budget"]) if "lock_budget" in given else locks.DEFAULT_BUDGET_S,
    }


def _run_offline(settings: Settings, *, contract: str) -> None:
    # a named paramstyle: the driver's own would double every percent sign
    how: dict[str, Any] = {"dialect_name": "postgresql", "literal_binds": True}
    how["dialect_opts"] = {"paramstyle": "named"}
    steps_from = _asked(settings, **how)["fn"]

    def steps(heads: Any, migration: Any) -> Iterator[Any]:
        for step in steps_from(heads, migration):
            if _is_contract(step) and contract == "hold":
                return
            context.execute(LOCK_TIMEOUT)  # again for each step: an index build waits longer
            yield step

    _configure(settings, fn=steps, **how)
    with context.begin_transaction():
        # psql goes on after an error, past a closed gate too, unless it is told not to
        context.get_context().impl.static_output("\\set ON_ERROR_STOP on\n")
        context.execute("SET client_min_messages = warning")
        context.execute(SEARCH_PATH)
        context.run_migrations()


def _run_online(settings: Settings, *, contract: str, budget: float) -> None:
    opts = _asked(settings, dialect_name="postgresql")
    planned = opts["fn"]
    lost = locks.Budget(budget)
    with ExitStack() as stack:
        engine = _connectable(settings)
        guard = stack.enter_context(_side_connection(engine))
        if "destination_rev" in opts:  # upgrade, downgrade, stamp; other commands only look
            check.check_direct(guard, lambda: _side_connection(engine))
            stack.enter_context(locks.one_at_a_time(guard, settings))
            planned = _plan(opts, guard, settings, contract, lost)
        connection = stack.enter_context(_migration_connection(engine, lost))
        _configure(settings, connection=connection, fn=planned)
        pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
        seen = stack.enter_context(blockers.watch(stack.enter_context(_side_connection(engine)), pid))
        try:
            locks.retry(_migrate, budget=lost, seen=seen)
        except exc.DBAPIError as error:
            if contract != "auto" or blockers.sqlstate(error) != GATE_CLOSED:
                raise
            # it closed between the question and the transaction that asks again
            log.warning("stopped before the next revision: %s", _explained(error))


def _migrate() -> None:
    with context.begin_transaction():
        context.run_migrations()


def _asked(settings: Settings, **how: Any) -> dict[str, Any]:
    """What the command wants of this file: configured once without a connection, and without a word."""
    chatty = logging.getLogger("alembic.runtime.migration")
    level = chatty.level
    chatty.setLevel(logging.WARNING)
    try:
        _configure(settings, **how)
    finally:
        chatty.setLevel(level)
    return context.get_context().opts


def _configure(settings: Settings, **how: Any) -> None:
    context.configure(
        target_metadata=None,
        transaction_per_migration=True,
        version_table=settings.version_table,
        version_table_schema=settings.version_table_schema,
        on_version_apply=context.config.attributes.get("on_version_apply"),  # leadprotect rollback looks at each step
        leadprotect=True,  # tells a revision that a closed gate is understood here
        **how,
    )


def _plan(
    opts: dict[str, Any], guard: psycopg.Connection[Any], settings: Settings, contract: str, lost: locks.Budget
) -> Callable[..., Iterator[Any]]:
    """Decide once what is to be done, refuse before anything is touched, and stop at a closed gate.

    Deciding once matters: a retry after a lock timeout goes on with what is left, so ``downgrade -2``
    never goes one further.
    """
    heads = () if opts.get("purge") else _current_heads(guard, settings)
    left = list(opts["fn"](heads, context.get_context()))
    if heads and any(isinstance(step, RevisionStep) for step in left):
        check_installed(guard, settings, applied=True)
    if any(_is_upgrade(step) for step in left):
        check.check_before_migration(guard, settings, fresh=not heads)
    elif left:
        check.check_server(guard)
    if any(_undoes_backfill(step) for step in left):
        for territory in jobs.pause_backfill(guard, settings, "alembic downgrade"):
            log.warning("paused the backfill of %s, which this downgrade ends", territory)

    def remaining(_heads: Any, _migration: Any) -> Iterator[Any]:
        while left:
            if _is_contract(left[0]) and not _may_contract(guard, settings, contract, left[0]):
                return
            lost.step_begins()
            yield left[0]
            left.pop(0)

    return remaining


def _current_heads(guard: psycopg.Connection[Any], settings: Settings) -> tuple[str, ...]:
    """What Alembic's own reader would say, but without a table made on the way."""
    versions = ident(settings.version_table_schema, settings.version_table)
    if relation(guard, settings.version_table_schema, settings.version_table) is None:
        return ()
    try:
        return tuple(row[0] for row in guard.execute(f"SELECT version_num FROM {versions}"))
    except psycopg.errors.UndefinedColumn:
        raise SettingsError(f"version_table: {versions} exists, but is no version table of Alembic") from None


def _may_contract(guard: psycopg.Connection[Any], settings: Settings, contract: str, step: RevisionStep) -> bool:
    """Ask the gate; says in one line what is missing, or raises where contract is required."""
    name = step.revision.revision
    if contract == "hold":
        log.warning("stopped before %s: -x contract=hold", name)
        return False
    missing = gate.closed(gate.conditions(guard, settings=settings))
    if missing and contract == "require":
        raise GateClosed(f"{name} is required, but its gate is closed: {missing}")
    if missing:
        log.warning("stopped before %s, its gate is closed: %s", name, missing)
    return missing is None


def _is_upgrade(step: Any) -> bool:
    return isinstance(step, RevisionStep) and step.is_upgrade


def _undoes_backfill(step: Any) -> bool:
    downwards = isinstance(step, RevisionStep) and not step.is_upgrade
    return downwards and getattr(step.revision.module, "phase", None) == "migrate"


def _is_contract(step: Any) -> bool:
    return _is_upgrade(step) and getattr(step.revision.module, "phase", None) == "contract"


def _connectable(settings: Settings) -> Engine:
    given = context.config.attributes.get("connection")
    if isinstance(given, Engine) and given.dialect.driver == "psycopg":
        return given
    if given is not None:
        raise SettingsError("config.attributes['connection'] must be an Engine of postgresql+psycopg")
    if not settings.database_url:
        raise SettingsError("database_url is missing: set DATABASE_URL or the key in [leadprotect]")
    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(settings.database_url, application_name="leadprotect migration"),
        poolclass=pool.NullPool,
    )


@contextmanager
def _side_connection(engine: Engine) -> Iterator[psycopg.Connection[Any]]:
    """A session of its own, in autocommit: it never holds a transaction that a build waits for."""
    raw = engine.raw_connection()
    try:
        conn: psycopg.Connection[Any] = raw.driver_connection  # type: ignore[assignment]
        conn.autocommit = True
        # a lock that is not to be had must not make a question wait for ever, unseen
        conn.execute(f"{SEARCH_PATH}; SET lock_timeout = '1min'")
        yield conn
    finally:
        raw.invalidate()


@contextmanager
def _migration_connection(engine: Engine, lost: locks.Budget) -> Iterator[Connection]:
    with engine.connect() as connection:

        @event.listens_for(connection, "begin")
        def limit_lock_waits(conn: Connection) -> None:
            # again for each transaction: a SET is undone by a rollback, and a step may have changed it;
            # an index build blocks nobody while it waits, so it may wait as long as the budget lasts
            session: psycopg.Connection[Any] = conn.connection.driver_connection  # type: ignore[assignment]
            rest = max(int(lost.rest * 1000), locks.LOCK_TIMEOUT_MS)
            try:
                session.execute(f"{SEARCH_PATH}; {LOCK_TIMEOUT}; SET leadprotect.lock_budget = '{rest}ms'")
            except psycopg.OperationalError as error:
                conn.invalidate(error)  # or the pool would try to roll back what is lost, and say so at length
                raise

        yield connection
