"""Alembic's environment: applies the revisions to a live database without stopping it.

Rules of this file, each with a test in tests/migrations/test_env.py: one transaction per revision;
a lock_timeout for each of them; retries inside a budget that name who blocks; one upgrade at a time;
nothing is executed on the migration's connection before `context.configure()`; a preflight before
anything is touched; and no contract revision while its gate is closed.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, suppress
from logging.config import fileConfig
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import context
from alembic.runtime.migration import RevisionStep
from alembic.util import CommandError
from sqlalchemy import exc

from leadprotect import phases
from leadprotect.backfilling import jobs
from leadprotect.database import blockers
from leadprotect.database.opening import PINNED
from leadprotect.errors import GateClosed, LeadProtectError, PreflightError
from leadprotect.migration import autogenerate, branches, event_triggers, gate, locks, undo, undoing, version_table
from leadprotect.migration.builds import second_builds
from leadprotect.migration.connections import connectable, migration_connection, side_connection
from leadprotect.migration.options import read_options
from leadprotect.preflight import check, standing
from leadprotect.preflight.columns import in_text
from leadprotect.preflight.installed import check_installed
from leadprotect.preflight.version_table import check_may_write, check_version_table, read_versions
from leadprotect.preflight.way_down import check_way_down
from leadprotect.settings import Settings, literal, load
from leadprotect.settings.names import KEPT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leadprotect.migration.options import Options

log = logging.getLogger("leadprotect")

LOCK_TIMEOUT = f"SET lock_timeout = '{locks.LOCK_TIMEOUT_MS}ms'"
GATE_CLOSED = "LP409"
HOST_UNREADABLE = "LP412"  # found when our reader can be asked: in the first revision
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
        options = read_options()
        settings = load(config)
        config.attributes[KEPT] = settings  # every block of a revision asks for them
        if context.is_offline_mode():
            _run_offline(settings, options)
        else:
            _run_online(settings, options)
    except LeadProtectError as error:
        raise CommandError(str(error)) from None
    except (exc.DBAPIError, exc.PendingRollbackError, psycopg.Error, KeyboardInterrupt) as error:
        log.debug("the statement that failed", exc_info=True)
        raise CommandError(_explained(error)) from None


def run_beside() -> None:
    """Run our branch with our own version table, and leave the rest of the command to the env.py of a host.

    For a host that names our folder in its `version_locations`: called first, before its own
    ``context.configure()``, which then meets the host's revisions alone. ``heads`` and ``base`` mean both, everything
    else the branch that it names. Raises `CommandError` like `run`.
    """
    opts = branches.given_opts()
    asked, before = opts["fn"], dict(opts)
    ours, theirs = branches.whose(opts)
    try:
        if ours:
            opts["fn"] = branches.of_branch(asked, ours=True)
            run()
    finally:
        opts.clear()
        opts.update(before)
        opts["fn"] = branches.of_branch(asked, ours=False) if theirs else branches.nothing
        if "destination_rev" not in opts:
            opts["fn"] = branches.complete(asked)


def beside() -> dict[str, Any]:
    """Arguments for the ``context.configure()`` of a host whose one version table holds both branches.

    A transaction for each revision, the way down that each leaves, and silence of autogenerate about us.
    """
    opts = branches.given_opts()
    settings = load(context.config)
    if not context.is_offline_mode():
        with side_connection(connectable(settings)) as conn:
            settings = in_text(conn, settings)
    context.config.attributes[KEPT] = settings

    def applied(ctx: Any, step: Any, heads: Any, run_args: Any) -> None:
        del heads, run_args
        undo.keep(ctx, step, settings)

    return {
        "transaction_per_migration": True,
        "include_object": autogenerate.include_object,
        "include_name": autogenerate.include_name,
        "on_version_apply": applied,
        "fn": branches.complete(opts["fn"]),
    }


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
    if state == HOST_UNREADABLE:
        return str(PreflightError(said.message_primary.splitlines(), (said.message_hint or "").splitlines()))
    parts = [said.message_primary, said.message_detail if state.startswith(NAMES_OBJECTS) else None, said.message_hint]
    text = ". ".join(part.rstrip(".") for part in parts if part)
    return text if state == GATE_CLOSED else f"{text} (SQLSTATE {state})"


def _run_offline(settings: Settings, options: Options) -> None:
    # a named paramstyle: the driver's own would double every percent sign
    how: dict[str, Any] = {"dialect_name": "postgresql", "literal_binds": True}
    how["dialect_opts"] = {"paramstyle": "named"}
    steps_from = _asked(settings, **how)["fn"]

    def steps(heads: Any, migration: Any) -> Iterator[Any]:
        missing, last = not heads, None
        for step in steps_from(heads, migration):
            if _is_contract(step) and options.contract == "hold":
                return
            if _is_contract(step) and not (last and _is_contract(last)):
                _script(*gate.accepting(options.accept, settings))
            if missing and _is_upgrade(step):
                _script(*version_table.making(settings))
                migration._version.create = _left_alone  # noqa: SLF001 - or the script would make it twice
                missing = False
            context.execute(LOCK_TIMEOUT)  # again for each step: an index build waits longer
            yield step
            last = step
        if _ends_at_base(last):
            _script(version_table.dropping(settings))
            migration._version.drop = _left_alone  # noqa: SLF001 - older versions of Alembic would drop it again

    _configure(settings, fn=steps, **how)
    with context.begin_transaction():
        # psql goes on after an error, past a closed gate too, unless it is told not to
        context.get_context().impl.static_output("\\set ON_ERROR_STOP on\n")
        context.execute("SET client_min_messages = warning")
        for name, value in PINNED.items():
            context.execute(f"SET {name} = {literal(value)}")
        context.run_migrations()


def _script(*statements: str) -> None:
    """Write statements into the script as they stand."""
    for statement in statements:
        context.get_context().impl.static_output(f"{statement.strip()};\n")


def _left_alone(*_: Any, **__: Any) -> None:
    """Alembic's own table would belong to whoever runs the script."""


def _run_online(settings: Settings, options: Options) -> None:
    opts = _asked(settings, dialect_name="postgresql")
    planned = opts["fn"]
    lost = locks.Budget(options.budget)
    held: Callable[[], None] = _nothing_held
    taken: list[Any] = []
    with ExitStack() as stack:
        engine = connectable(settings)
        guard = stack.enter_context(side_connection(engine))
        settings = context.config.attributes[KEPT] = in_text(guard, settings)
        writes = "destination_rev" in opts  # upgrade, downgrade, stamp; other commands only look
        made = False
        if not writes:
            read_versions(guard, settings, ours=True)
        else:
            made = read_versions(guard, settings, ours=True) is None
            held = stack.enter_context(locks.one_at_a_time(guard, settings, wait=options.wait))
            planned = _plan(opts, guard, settings, options, lost, held, taken=taken)
        connection, pid = stack.enter_context(migration_connection(engine, lost))
        _configure(
            settings, held, connection=connection, fn=planned, leadprotect_beside=second_builds(guard, connection, lost)
        )
        seen = stack.enter_context(blockers.watch(stack.enter_context(side_connection(engine)), pid))
        try:
            locks.retry(_migrate, budget=lost, seen=seen)
            connection.rollback()
            if writes and not any(map(_is_upgrade, taken)):
                version_table.drop_empty(guard, settings)
        except (exc.DBAPIError, psycopg.Error) as error:
            if made and not taken:
                version_table.drop_empty(guard, settings)
            if reason := event_triggers.culprit(guard, error, settings):
                raise CommandError(f"{_explained(error)}: {reason}") from None
            if options.contract != "auto" or blockers.sqlstate(error) != GATE_CLOSED:
                raise
            # it closed between the question and the transaction that asks again
            log.warning("stopped before the next revision: %s", _explained(error))


def _nothing_held() -> None:
    """A command that only looks needs no lock."""


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


def _configure(settings: Settings, held: Callable[[], None] | None = None, **how: Any) -> None:
    given = context.config.attributes.get("on_version_apply")  # leadprotect rollback looks at each step

    def applied(ctx: Any, step: Any, heads: Any, run_args: Any) -> None:
        """In the transaction of the step: what is wrong now takes the step back, and its stamp."""
        if held:
            held()
        undo.keep(ctx, step, settings)
        if given:
            given(ctx=ctx, step=step, heads=heads, run_args=run_args)

    context.configure(
        target_metadata=None,
        transaction_per_migration=True,
        version_table=settings.version_table,
        version_table_schema=settings.version_table_schema,
        on_version_apply=applied,
        dont_mutate=True,  # Alembic never makes the version table: who runs it would own it
        leadprotect=True,  # tells a revision that a closed gate is understood here
        **how,
    )


def _plan(
    opts: dict[str, Any],
    guard: psycopg.Connection[Any],
    settings: Settings,
    options: Options,
    lost: locks.Budget,
    held: Callable[[], None],
    *,
    taken: list[Any],
) -> Callable[..., Iterator[Any]]:
    """Decide once what is to be done, refuse before anything is touched, and stop at a closed gate.

    Deciding once matters: a retry after a lock timeout goes on with what is left, so ``downgrade -2``
    never goes one further. What was done is added to `taken`.
    """
    present = _present(guard, settings)
    heads = () if opts.get("purge") else present or ()
    left = list(opts["fn"](heads, context.get_context()))
    if any(isinstance(step, RevisionStep) for step in left) or not left:
        _check_number(guard, settings, heads)
    _check(guard, settings, left, applied=bool(heads))
    if heads and not left:
        _check_standing(guard, settings, options.contract, heads)
    if any(_undoes_backfill(step) for step in left):
        for territory in jobs.pause_backfill(guard, settings, "alembic downgrade"):
            log.warning("paused the backfill of %s, which this downgrade ends", territory)
    if left and present is None:
        _make_version_table(guard, settings)

    def remaining(_heads: Any, _migration: Any) -> Iterator[Any]:
        while left:
            # each asks again in its own transaction, and the gate reads every activity
            first = _is_contract(left[0]) and not (taken and _is_contract(taken[-1]))
            if first and not _may_contract(guard, settings, options, left[0]):
                return
            held()
            lost.step_begins()
            yield left[0]
            taken.append(left.pop(0))

    return remaining


def _check(guard: psycopg.Connection[Any], settings: Settings, left: list[Any], *, applied: bool) -> None:
    """Refuse what would fail halfway, up or down."""
    if not applied or any(isinstance(step, RevisionStep) for step in left):
        check_installed(guard, settings, applied=applied)
    if any(_is_upgrade(step) for step in left):
        check.check_before_migration(guard, settings, fresh=not applied)
    elif left:
        check.check_server(guard)
    if undone := [step.revision for step in left if isinstance(step, RevisionStep) and not step.is_upgrade]:
        _check_tables(guard, settings, undone[0].revision)
        check_way_down(guard, settings, undoing.script(undone))


def _check_number(guard: psycopg.Connection[Any], settings: Settings, heads: tuple[str, ...]) -> None:
    """Refuse where the version table was lost, emptied or stamped below what stands: the revisions say what that is.

    And while a host-change has what it names in the quarantine.
    """
    if heads and standing.taken_away(guard, settings):
        raise CommandError(standing.TAKEN_AWAY)
    if reason := undo.contradicted(guard, settings, heads):
        raise CommandError(reason)


def _check_tables(guard: psycopg.Connection[Any], settings: Settings, head: str) -> None:
    if lost := standing.lost_tables(guard, settings, phases.through(head)):
        raise CommandError(
            f"the version table says {head}, but the database lacks {', '.join(lost)}: restore them from a backup. "
            "Nothing was touched"
        )


def _present(guard: psycopg.Connection[Any], settings: Settings) -> tuple[str, ...] | None:
    """What is applied, of a table that is ours and that this role may write; None without a table."""
    if check_version_table(guard, settings, ours=True):
        check_may_write(guard, settings)
    return read_versions(guard, settings, ours=True)


def _make_version_table(guard: psycopg.Connection[Any], settings: Settings) -> None:
    try:
        version_table.make(guard, settings)
    except psycopg.Error as error:
        if reason := event_triggers.culprit(guard, error, settings):
            raise CommandError(f"{_explained(error)}: {reason}") from None
        raise


def _check_standing(guard: psycopg.Connection[Any], settings: Settings, contract: str, heads: tuple[str, ...]) -> None:
    """Where nothing is to be done: whether that is so, or only a number says it; raises, unless contract is held."""
    for head in heads:
        if said := _gone(guard, settings, head) or _altered(guard, settings, head):
            if contract == "hold":
                log.warning("%s", said)
            else:
                raise GateClosed(f"contract is required, and {said}" if contract == "require" else said)


def _gone(guard: psycopg.Connection[Any], settings: Settings, head: str) -> str | None:
    if gone := standing.lacking(guard, settings, phases.through(head)):
        return (
            f"nothing was done, because the version table says {head}, but the database lacks {', '.join(gone)}: "
            f"alembic downgrade {phases.before('contract')[-1]} and upgrade make anew what contract put on the "
            "leads; tables come back from a backup, or by alembic stamp base and upgrade where all are gone"
        )
    return None


def _altered(guard: psycopg.Connection[Any], settings: Settings, head: str) -> str | None:
    from leadprotect.doctor.repair import altered  # noqa: PLC0415 - the one question to a floor above

    if phases.reached(head) == "contract" and (changed := altered(guard, settings=settings)):
        return (
            f"nothing was done, because the version table says {head}, but what it made was changed: "
            f"{'; '.join(changed)}: leadprotect repair puts it back, leadprotect doctor says what each means"
        )
    return None


def _may_contract(guard: psycopg.Connection[Any], settings: Settings, options: Options, step: RevisionStep) -> bool:
    """Ask the gate; says in one line what is missing, or raises where contract is required."""
    name, contract = step.revision.revision, options.contract
    if contract == "hold":
        log.warning("stopped before %s: -x contract=hold", name)
        return False
    for statement in gate.accepting(options.accept, settings):
        guard.execute(statement.encode())
    missing = gate.closed(gate.conditions(guard, settings=settings))
    if missing and contract == "require":
        raise GateClosed(f"{name} is required, but its gate is closed: {missing}")
    if missing:
        log.warning("stopped before %s, its gate is closed: %s", name, missing)
    return missing is None


def _is_upgrade(step: Any) -> bool:
    return isinstance(step, RevisionStep) and step.is_upgrade


def _ends_at_base(step: Any) -> bool:
    return isinstance(step, RevisionStep) and not step.is_upgrade and step.revision.down_revision is None


def _undoes_backfill(step: Any) -> bool:
    downwards = isinstance(step, RevisionStep) and not step.is_upgrade
    # what a later release migrates is no backfill
    return downwards and _phase(step) == "migrate" and step.revision.revision in phases.before("contract")


def _is_contract(step: Any) -> bool:
    return _is_upgrade(step) and _phase(step) == "contract"


def _phase(step: Any) -> str | None:
    """As the revision declares it; one of a host that shares the version table declares none."""
    return getattr(step.revision.module, "phase", None)
