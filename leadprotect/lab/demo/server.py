"""The demo's server, and commands run on it as a user would."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from rich.table import Table

from leadprotect.errors import LeadProtectError
from leadprotect.lab.commands import AlembicStep, alembic_step, run_to_end

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from leadprotect.lab.servers import Server
    from leadprotect.lab.sheet import Sheet


@dataclass(frozen=True)
class Demo:
    """A running server with the demo's database; its folder holds an alembic.ini that names it.

    `show` prints a table; `hidden` are settings of the caller's environment that the demo does without.
    """

    server: Server
    console: Console
    show: Callable[[Sheet], None]
    hidden: tuple[str, ...]

    def url(self, login: str = "postgres") -> str:
        """The URL of the demo's database for a login."""
        return self.server.url("demo", login)

    def connect(self, login: str = "postgres", *, autocommit: bool = False) -> psycopg.Connection[Any]:
        """A connection to the demo's database."""
        return psycopg.connect(self.url(login), autocommit=autocommit)

    def sql(self, statement: str, *params: Any) -> list[Any]:
        """Run a statement as the superuser."""
        with self.connect(autocommit=True) as conn:
            cursor = conn.execute(statement, params or None)
            return cursor.fetchall() if cursor.description else []

    def run(self, *command: str, brief: bool = False) -> None:
        """Run one of the project's commands as a user would, and show what it says.

        With `brief` the revisions are counted only. Raises `LeadProtectError` when it fails.
        """
        self.console.print(f"$ {' '.join(command)}", style="bold cyan", markup=False)
        began = time.perf_counter()
        steps: list[AlembicStep] = []

        def heard(line: str) -> None:
            if step := alembic_step(line):
                steps.append(step)
                if not brief:
                    self._show(step)
            elif not re.match(r"INFO +\[alembic", line):  # what Alembic says about itself
                self.console.print(line, style="yellow", markup=False)

        # a progress bar needs the terminal itself; where the story goes to stderr, stdout is a program's
        itself = command[0] != "alembic" and not self.console.stderr
        code = run_to_end(command, folder=self.server.folder, heard=None if itself else heard)
        if code:
            raise LeadProtectError(f"{' '.join(command)} ended with exit code {code}")
        counted = f"{len(steps)} revisions, " if brief else ""
        self.console.print(f"{counted}exit code 0 after {time.perf_counter() - began:.1f} s", style="dim")

    def _show(self, step: AlembicStep) -> None:
        row = Table.grid(padding=(0, 2))
        row.add_column(width=34, no_wrap=True)
        sign = "+" if step.direction == "upgrade" else "-"
        row.add_row(f"{sign} {step.revision}", step.summary)
        self.console.print(row)
