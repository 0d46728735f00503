"""Alembic's environment: applies the revisions to a live database without stopping it.

Rules of this file, each with a test: one transaction per revision; a lock_timeout for each of them;
retries inside a budget that name who blocks; one upgrade at a time; nothing is executed on the
migration's connection before `context.configure()`; a preflight before anything is touched; and no
contract revision while its gate is closed.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from logging.config import fileConfig
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import context
from alembic.runtime.migration import RevisionStep
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, exc, pool

from leadprotect import gate, locks, preflight
from leadprotect.errors import GateClosed, LeadProtectError, SettingsError
from leadprotect.settings import Settings, ident, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("leadprotect")

# Everything the revisions write is schema-qualified; the rest must mean what pg_catalog says.
SESSION = f"SET search_path = pg_catalog; SET lock_timeout = '{locks.LOCK_TIMEOUT_MS}ms'"


def main() -> None:
    if context.config.config_file_name is not None and context.config.attributes.get("configure_logger", True):
        fileConfig(context.config.config_file_name, disable_existing_loggers=False)
    try:
        options = read_options()
        settings = load(context.config)
        if context.is_offline_mode():
            run_offline(settings)
        else:
            run_online(settings, **options)
    except LeadProtectError as error:
        raise CommandError(str(error)) from None
    except (exc.DBAPIError, psycopg.Error) as error:
        origin = getattr(error, "orig", error)
        if getattr(origin, "sqlstate", None) == "LP409":
            raise CommandError(origin.diag.message_primary) from None
        if isinstance(origin, psycopg.OperationalError) and origin.sqlstate is None:
            raise CommandError(f"no connection to the database: {origin}") from None
        raise


def read_options() -> dict[str, Any]:
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


def run_offline(settings: Settings) -> None:
    # a named paramstyle: the driver's own would double every percent sign
    configure(settings, dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"})
    with context.begin_transaction():
        context.execute("SET search_path = pg_catalog")
        context.execute(f"SET lock_timeout = '{locks.LOCK_TIMEOUT_MS}ms'")
        context.run_migrations()


def run_online(settings: Settings, *, contract: str, budget: float) -> None:
    configure(settings, dialect_name="postgresql")
    opts = context.get_context().opts
    planned = opts["fn"]
    with ExitStack() as stack:
        engine = connectable(settings)
        guard = stack.enter_context(side_connection(engine))
        if "destination_rev" in opts:  # upgrade, downgrade, stamp; other commands only look
            stack.enter_context(locks.one_at_a_time(guard, settings))
            planned = plan(planned, guard, settings, contract)
        connection = stack.enter_context(migration_connection(engine))
        configure(settings, connection=connection, fn=planned)
        pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
        seen = stack.enter_context(locks.watch(stack.enter_context(side_connection(engine)), pid))
        locks.retry(migrate, budget=budget, seen=seen)


def migrate() -> None:
    with context.begin_transaction():
        context.run_migrations()


def configure(settings: Settings, **how: Any) -> None:
    context.configure(
        target_metadata=None,
        transaction_per_migration=True,
        version_table=settings.version_table,
        version_table_schema=settings.version_table_schema,
        **how,
    )


def plan(
    steps_from: Callable[..., Any], guard: psycopg.Connection[Any], settings: Settings, contract: str
) -> Callable[..., Iterator[Any]]:
    """Decide once what is to be done, refuse before anything is touched, and stop at a closed gate.

    Deciding once matters: a retry after a lock timeout goes on with what is left, so ``downgrade -2``
    never goes one further.
    """
    heads = current_heads(guard, settings)
    left = list(steps_from(heads, context.get_context()))
    if any(is_upgrade(step) for step in left):
        preflight.check(guard, settings, fresh=not heads)

    def remaining(_heads: Any, _migration: Any) -> Iterator[Any]:
        while left:
            if is_contract(left[0]) and not may_contract(guard, settings, contract, left[0]):
                return
            yield left[0]
            left.pop(0)

    return remaining


def current_heads(guard: psycopg.Connection[Any], settings: Settings) -> tuple[str, ...]:
    """What Alembic's own reader would say, but without a table made on the way."""
    versions = ident(settings.version_table_schema, settings.version_table)
    if guard.execute("SELECT to_regclass(%s)", (versions,)).fetchone() == (None,):
        return ()
    return tuple(row[0] for row in guard.execute(f"SELECT version_num FROM {versions}"))


def may_contract(guard: psycopg.Connection[Any], settings: Settings, contract: str, step: RevisionStep) -> bool:
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


def is_upgrade(step: Any) -> bool:
    return isinstance(step, RevisionStep) and step.is_upgrade


def is_contract(step: Any) -> bool:
    return is_upgrade(step) and getattr(step.revision.module, "phase", None) == "contract"


def connectable(settings: Settings) -> Engine:
    given = context.config.attributes.get("connection")
    if isinstance(given, Engine):
        return given
    if not settings.database_url:
        raise SettingsError("database_url is missing: set DATABASE_URL or the key in [leadprotect]")
    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(settings.database_url, application_name="leadprotect migration"),
        poolclass=pool.NullPool,
    )


@contextmanager
def side_connection(engine: Engine) -> Iterator[psycopg.Connection[Any]]:
    """A session of its own, in autocommit: it never holds a transaction that a build waits for."""
    raw = engine.raw_connection()
    try:
        conn = raw.driver_connection
        assert isinstance(conn, psycopg.Connection)
        conn.autocommit = True
        conn.execute("SET search_path = pg_catalog")
        yield conn
    finally:
        raw.invalidate()


@contextmanager
def migration_connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:

        @event.listens_for(connection, "begin")
        def limit_lock_waits(conn: Connection) -> None:
            # again for each transaction: a SET is undone by a rollback, and a step may have changed it
            conn.connection.driver_connection.execute(SESSION)  # type: ignore[union-attr]

        yield connection


main()
