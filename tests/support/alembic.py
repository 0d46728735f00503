"""The command `alembic` as a release engineer runs it: a process of its own."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.support.database import ROOT, Database
from tests.support.forked import Forked, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from subprocess import CompletedProcess

PROGRAM = "alembic"
COMMAND = (sys.executable, "-m", PROGRAM)


def alembic(
    database: Database, *arguments: str, cwd: Path = ROOT, environ: dict[str, str] | None = None
) -> CompletedProcess[str]:
    """Run it to its end; `environ` is added to the settings of the database."""
    return run([PROGRAM, *arguments], _environment(database) | (environ or {}), cwd=cwd)


@contextmanager
def started(database: Database, *arguments: str) -> Iterator[Forked]:
    """Start it, and end it with the block if it still runs; its messages are on stderr."""
    with Forked([PROGRAM, *arguments], _environment(database), cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def until(process: Forked, text: str) -> str:
    """Read its messages up to the line with `text`; all lines if it never comes."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            break
    return "".join(lines)


def wait_for(database: Database, query: str, *params: Any) -> Any:
    """The first value that a query returns, asked until there is one."""
    for _ in range(600):
        if found := database.sql(query, *params):
            return found[0]
        time.sleep(0.05)
    raise AssertionError(query)


def waiting(database: Database) -> int:
    """The process id of the migration, as soon as it waits for a lock."""
    pid: int = wait_for(
        database,
        "SELECT a.pid FROM pg_stat_activity AS a WHERE a.datname = current_database() "
        "AND a.application_name = 'leadprotect migration' AND cardinality(pg_blocking_pids(a.pid)) > 0",
    )
    return pid


def _environment(database: Database) -> dict[str, str]:
    foreign = {name for name in os.environ if name.startswith("LEADPROTECT_")}
    inherited = {name: value for name, value in os.environ.items() if name not in foreign}
    return inherited | database.environment
