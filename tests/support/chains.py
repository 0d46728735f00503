"""A project of a host's own: an alembic.ini, an env.py as Alembic makes it, and revisions."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent
from typing import TYPE_CHECKING

from leadprotect.authoring.chain import RevisionChain, read_chain

if TYPE_CHECKING:
    from pathlib import Path

INI = """\
[alembic]
script_location = %(here)s/mig
path_separator = os
"""
ENV = """\
from alembic import context

context.run_migrations()
"""
REVISION = '''\
"""{title}.

Why: somebody needs it.

Locks on host tables: {told}.

Undone by: taking it back.
"""

from alembic import op

revision = "{revision}"
down_revision = {below}
branch_labels = None
depends_on = None
phase = "{phase}"
locks = {locks}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '100ms'")
{up}

def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '100ms'")
{down}'''


@dataclass
class Project:
    """The folder of a host that migrates with Alembic."""

    folder: Path

    def __post_init__(self) -> None:
        self.versions.mkdir(parents=True)
        self.ini.write_text(INI, encoding="utf-8")
        (self.folder / "mig/env.py").write_text(ENV, encoding="utf-8")

    @property
    def ini(self) -> Path:
        return self.folder / "alembic.ini"

    @property
    def versions(self) -> Path:
        return self.folder / "mig/versions"

    @property
    def chain(self) -> RevisionChain:
        return read_chain(ini=self.ini)

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.versions.glob("*.py"))

    def add(
        self,
        revision: str,
        below: str | None = None,
        *,
        up: str = "",
        down: str = "",
        locks: dict[str, dict[str, str]] | None = None,
        told: str = "none beyond ROW EXCLUSIVE",
        file: str | None = None,
    ) -> Path:
        """A revision that nothing is wrong with, but what `up` and `down` do: SQL, one statement each."""
        phases = [part for part in revision.split("_") if part in ("expand", "migrate", "contract")]
        text = REVISION.format(
            title=revision.rpartition("_")[2].capitalize(), revision=revision, told=told,
            below=f'"{below}"' if below else None, phase=(phases or ["expand"])[0],
            locks=locks or {"upgrade": {}, "downgrade": {}}, up=executed(up), down=executed(down),
        )  # fmt: skip
        path = self.versions / f"{file or revision}.py"
        path.write_text(text, encoding="utf-8")
        return path


def executed(statement: str) -> str:
    if not statement:
        return ""
    body = "\n".join(f"        {line}" for line in dedent(statement).strip().splitlines())
    return f'    op.execute(\n        """\n{body}\n        """\n    )\n'
