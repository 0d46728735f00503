"""The command `alembic` as a release engineer runs it: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.support.database import ROOT, Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = (sys.executable, "-m", "alembic")


def alembic(
    database: Database, *arguments: str, cwd: Path = ROOT, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it to its end; `environ` is added to the settings of the database."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=_environment(database) | (environ or {}),
        text=True,
        capture_output=True,
        check=False,
    )


@contextmanager
def started(database: Database, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start it, and end it with the block if it still runs; its messages are on stderr."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=_environment(database),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def until(process: subprocess.Popen[str], text: str) -> str:
    """Read its messages up to the line with `text`; all lines if it never comes."""
    lines = []
    assert process.stderr is not None
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
