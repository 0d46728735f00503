"""Ends a migration at a chosen moment: before its n-th statement, or before the commit after it.

As a program (``python -m tests.support.faults``) it reads one job a line, ``upgrade +1 3``, and runs it
in a child that kills itself with SIGKILL at that moment; the exit status of the child is printed.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.database import Database

APPLICATION = "migration to be ended"


@contextmanager
def faulty_engine(url: str, moment: int, act: Callable[[Connection], None]) -> Iterator[Engine]:
    """An engine that calls `act` at this moment; statements and commits are counted from 0."""
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(url, application_name=APPLICATION),
        poolclass=pool.NullPool,
    )
    passed = iter(range(1_000_000))

    def count(conn: Connection, *_: Any) -> None:
        if next(passed) == moment:
            act(conn)

    event.listen(engine, "before_cursor_execute", count)
    event.listen(engine, "commit", count)
    try:
        yield engine
    finally:
        engine.dispose()


def migrate(config: Config, engine: Engine, direction: str, target: str) -> None:
    config.attributes["connection"] = engine
    config.attributes["configure_logger"] = False
    getattr(command, direction)(config, target)


@contextmanager
def killer(database: Database) -> Iterator[Callable[[str, str, int], bool]]:
    """A function that migrates in a process of its own and tells whether it was killed at that moment."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.faults"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **database.environment},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(direction: str, target: str, moment: int) -> bool:
            print(direction, target, moment, file=process.stdin, flush=True)
            status = int(process.stdout.readline())  # type: ignore[union-attr]
            assert status in {0, -signal.SIGKILL}
            return status != 0

        yield run
        process.stdin.close()


def _serve() -> None:
    # everything is imported before the first fork, so that a child starts in milliseconds
    config = Config("alembic.ini", output_buffer=io.StringIO())
    config.attributes["configure_logger"] = False
    command.upgrade(config, "head", sql=True)
    create_engine("postgresql+psycopg://")
    for line in sys.stdin:
        direction, target, moment = line.split()
        child = os.fork()
        if not child:
            _child(direction, target, int(moment))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _child(direction: str, target: str, moment: int) -> None:
    def kill(_: Connection) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        with faulty_engine(os.environ["DATABASE_URL"], moment, kill) as engine:
            migrate(Config("alembic.ini"), engine, direction, target)
    except BaseException as error:  # noqa: BLE001 - a child of a fork must not return
        os.write(2, f"{error!r}\n".encode())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    _serve()
