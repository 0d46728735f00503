"""The steps of a rehearsal: the real commands, in a process of their own, timed revision by revision."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alembic.script import ScriptDirectory

from leadprotect.lab.commands import alembic_step, run_to_end
from leadprotect.settings.files import migrations

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_GENTLE = {"ShareUpdateExclusiveLock"}
BUILDS = frozenset(
    script.revision
    for script in ScriptDirectory(str(migrations())).walk_revisions()
    if set(script.module.locks["upgrade"].values()) == _GENTLE
)
"""Revisions that build or drop indexes CONCURRENTLY: they take as long as the tables are large, and block nobody."""


@dataclass
class Revision:
    """One revision of a step; times in epoch seconds. `began` is the first attempt, `tried` the last one."""

    name: str
    began: float
    tried: float
    ended: float = 0.0
    attempts: int = 1

    @property
    def seconds(self) -> float:
        """What it took once it had its locks."""
        return self.ended - self.tried

    @property
    def waited(self) -> float:
        """What it lost to locks before."""
        return self.tried - self.began


@dataclass
class Step:
    """A command that ran under traffic; `lines` is what it said, and when."""

    title: str
    command: str
    began: float
    ended: float = 0.0
    code: int | None = None
    revisions: list[Revision] = field(default_factory=list)
    lines: list[tuple[float, str]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """From start to exit, Python's own start included."""
        return self.ended - self.began


def run_step(
    title: str, command: tuple[str, ...], *, folder: Path, environment: dict[str, str], say: Callable[[str], None]
) -> Step:
    """Run a command in `folder` to its end, and note when each revision began."""
    step = Step(title, " ".join(command), time.time())
    say(f"{title}: {step.command}")
    step.code = run_to_end(
        command, folder=folder, environment=environment, heard=lambda line: note(step, line, time.time())
    )
    step.ended = time.time()
    if step.revisions:
        step.revisions[-1].ended = step.ended
    return step


def note(step: Step, line: str, now: float) -> None:
    """Keep a line; one that names a revision ends the one before, or is another attempt at it."""
    step.lines.append((now, line))
    found = alembic_step(line)
    if found is None:
        return
    name = found.revision
    last = step.revisions[-1] if step.revisions else None
    if last and last.name == name:
        last.tried = now
        last.attempts += 1
        return
    if last:
        last.ended = now
    step.revisions.append(Revision(name, now, now))


def correct_ends(step: Step, versions: list[tuple[float, str | None]]) -> None:
    """Correct when each revision ended by what the database said; before the next one, the gate was asked."""
    for one in step.revisions:
        downwards = "downgrade" in step.command
        ends = [at for at, version in versions if at >= one.tried and (version == one.name) != downwards]
        one.ended = min([one.ended, *ends[:1]])
