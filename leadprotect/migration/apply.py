"""Brings settings that may change after contract into the database, with the questions of the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect import phases
from leadprotect.database.connection import connect
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.errors import GateClosed, InvalidRequest
from leadprotect.migration import gate, steps, undoing
from leadprotect.migration.rollback import alembic_config
from leadprotect.preflight import check
from leadprotect.preflight.applied import Difference, differences, made_with
from leadprotect.preflight.columns import in_text
from leadprotect.preflight.version_table import revision
from leadprotect.preflight.way_down import check_way_down
from leadprotect.settings import Settings, load

if TYPE_CHECKING:
    import psycopg
    from alembic.config import Config


@dataclass(frozen=True)
class Applied:
    """What `leadprotect apply` found and did: `done` is False for a dry run, and where nothing differs.

    `refused` are the conditions of the gate that hold now and would not any more: while there is one,
    nothing is done. `statements` are run in one transaction.
    """

    changes: tuple[Difference, ...]
    statements: tuple[str, ...]
    refused: tuple[gate.Condition, ...]
    done: bool


def apply(*, dry_run: bool = False, config: Config | None = None, lock_budget: str | None = None) -> Applied:
    """Make what contract made anew with the settings of today, in one transaction; before contract there is nothing.

    `dry_run` asks everything and changes nothing; `lock_budget` as in ``-x lock_budget=60s``. Raises `GateClosed`
    where a change would lock somebody out or open a way round, with what to run; `PreflightError` for what stands
    in the way, and `InvalidRequest` at a revision of a newer version.
    """
    alembic = config or alembic_config()
    s = load(alembic)
    with mapped_errors():
        with connect(s) as conn:
            check.check_server(conn)
            s = in_text(conn, s)
            names = _applied(conn, s)
            found = differences(conn, s)
            if not found:
                return Applied((), (), (), done=False)
            check.check_before_migration(conn, s, fresh=False)
            statements = undoing.of(alembic, s, names, "remake")
            check_way_down(conn, s, ";\n".join(statements))
            refused = tuple(newly_closed(conn, s))
        if dry_run or refused:
            if refused and not dry_run:
                raise GateClosed(f"{'; '.join(map(str, found))}: {gate.closed([*refused])}. Nothing was touched")
            return Applied(tuple(found), tuple(statements), refused, done=False)
        with steps.in_steps(s, lock_budget=lock_budget) as steps_of:
            steps_of.step(lambda conn: _carry_out(conn, s, statements))
    return Applied(tuple(found), tuple(statements), (), done=True)


def newly_closed(conn: psycopg.Connection[Any], s: Settings) -> list[gate.Condition]:
    """The conditions of the gate that hold with what the database was made with, and do not with the settings `s`."""
    before = {one.name for one in gate.conditions(conn, settings=made_with(conn, s)) if not one.met}
    return [one for one in gate.conditions(conn, settings=s) if not one.met and one.name not in before]


def _applied(conn: psycopg.Connection[Any], s: Settings) -> tuple[str, ...]:
    present = revision(conn, s)
    if present and present not in phases.chain():
        raise InvalidRequest(f"{present} was applied by a newer version of leadprotect: apply with that version")
    return phases.through(present)


def _carry_out(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> None:
    if refused := newly_closed(conn, s):  # somebody may have come since
        raise GateClosed(f"{gate.closed(refused)}. Nothing was touched")
    for statement in statements:
        conn.execute(statement.encode())
