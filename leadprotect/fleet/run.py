"""Runs a command once for each database, in a process of its own, so that none can hold or break another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from leadprotect.errors import InvalidRequest, SettingsError
from leadprotect.fleet.forks import Forked
from leadprotect.fleet.parts import part_of, require_held
from leadprotect.processes import uninterrupted
from leadprotect.settings.databases import ON, SECTION
from leadprotect.settings.files import ini_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leadprotect.settings import Settings
    from leadprotect.settings.databases import TerritoryDatabase

WORKERS = 8
"""Databases at once, if nothing else is said: each is a process here, and some sessions there."""

ALEMBIC = ("upgrade", "downgrade", "current")
COMMANDS = (
    *ALEMBIC, "apply", "audit", "backfill", "doctor", "gate", "pin", "plan", "rollback", "shadow", "status", "territory"
)  # fmt: skip
"""What can be run on every database; anything else is about one, or about none."""

_WORST_LAST = {
    "gate": (0, 10, 30, 20),  # rolling back is worse than not knowing
    "guard": (0, 10, 11, 30, 1, 20, 21),
    "plan": (0, 3, 1),
}
_OF_ALEMBIC = 255  # its own for every error
_STOP_S = 30.0


@dataclass(frozen=True)
class DatabaseRun:
    """What the command did on one database; `output` is its JSON where it was asked for, else its lines.

    `errors` are its lines on stderr; `seconds` from its start to its end.
    """

    territories: tuple[str, ...]
    exit_code: int
    seconds: float
    output: Any
    errors: tuple[str, ...]


@dataclass(frozen=True)
class FleetRun:
    """A command on all databases; `exit_code` is the worst of theirs."""

    command: tuple[str, ...]
    databases: tuple[DatabaseRun, ...]
    exit_code: int


def run_on_all(
    settings: Settings,
    command: Sequence[str],
    *,
    workers: int = WORKERS,
    tell: Callable[[str, str], None] | None = None,
    work: Callable[[list[str]], object] | None = None,
) -> FleetRun:
    """Run `command` on each database of the settings, at most `workers` at once, and wait for all of them.

    One that can't be reached ends with its own error, and the others go on; so the same command again does what is
    left. `tell` gets each line as it comes, with the name of the database. `work` runs a command in this process; it is
    forked for each database while it has one thread, and what it has loaded is not loaded again. Raises
    `SettingsError` without databases, `InvalidRequest` for a command that is about one of them, or that names a
    territory which none of them has.
    """
    if not settings.databases:
        raise SettingsError(f"--fleet: there is no section [{SECTION}]; write into it: DE = postgresql://...")
    if not command or command[0] not in COMMANDS:
        said = repr(command[0]) if command else "nothing"
        raise InvalidRequest(
            f"--fleet runs {', '.join(COMMANDS)}, not {said}; for one database: --on DE COMMAND; "
            "for a rollout over all: leadprotect guard --fleet"
        )
    require_held(settings, command)
    parts = [(one, part) for one in settings.databases if (part := part_of(one, command)) is not None]
    processes = _Processes(parts, work)
    with ThreadPoolExecutor(min(workers, len(parts)), "leadprotect-fleet") as pool:
        try:
            started = [pool.submit(processes.run, one, part, tell) for one, part in parts]
            found = tuple(each.result() for each in started)
        except BaseException:
            processes.stop()
            raise
    return FleetRun(tuple(command), found, worst(command[0], [one.exit_code for one in found]))


def run_on(one: TerritoryDatabase, command: Sequence[str], tell: Callable[[str, str], None]) -> DatabaseRun:
    """Run `command` on one of the databases, and wait for it."""
    words = [*command]
    return _Processes([(one, words)], None).run(one, words, tell)


def worst(command: str, codes: Sequence[int]) -> int:
    """The exit code that tells most of what went wrong."""
    order = _WORST_LAST.get(command, ())
    return max(codes, key=lambda code: (order.index(code) if code in order else len(order), code))


class _Processes:
    """The processes that run now; one stop ends them all."""

    def __init__(
        self, parts: Sequence[tuple[TerritoryDatabase, list[str]]], work: Callable[[list[str]], object] | None
    ) -> None:
        self._running: list[subprocess.Popen[str] | Forked] = []
        self._stopped = False
        self._lock = threading.Lock()
        alone = work is not None and hasattr(os, "fork") and threading.active_count() == 1
        with uninterrupted():  # else one that is half made would be nobody's
            self._waiting = {one.name: Forked(one, words, work) for one, words in parts if work is not None and alone}

    def run(self, one: TerritoryDatabase, command: list[str], tell: Callable[[str, str], None] | None) -> DatabaseRun:
        """Run the command with the settings of one database, and read what it says as it comes."""
        began = time.monotonic()
        with self._lock:
            if self._stopped:
                return DatabaseRun(one.territories, 128 + signal.SIGTERM, 0.0, (), ("not begun",))
            process = self._waiting.get(one.name) or _started(one, command)
            if isinstance(process, Forked):
                process.go()
            self._running.append(process)
        said: dict[str, list[str]] = {"stdout": [], "stderr": []}

        def read(name: str) -> None:
            for line in getattr(process, name):
                said[name].append(line.rstrip("\n"))
                if tell:
                    tell(one.name, line.rstrip("\n"))

        readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in said]
        with process:
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
            code = process.wait()
        seconds = time.monotonic() - began
        output = _parsed(said["stdout"]) if "--json" in command else tuple(said["stdout"])
        if code == _OF_ALEMBIC and command[0] in ALEMBIC:
            code = 1
        exit_code = code if code >= 0 else 128 - code
        return DatabaseRun(one.territories, exit_code, seconds, output, tuple(said["stderr"]))

    def stop(self) -> None:
        """End them as a plain kill would, which each tidies up after; what doesn't end is killed."""
        with self._lock:
            self._stopped = True
            running = [one for one in self._running if one.poll() is None]
        for one in running:
            one.terminate()
        until = time.monotonic() + _STOP_S
        for one in running:
            try:
                one.wait(max(until - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                one.kill()


def for_alembic(words: Sequence[str]) -> list[str]:
    """The same words as Alembic takes them: its own options, -x NAME=VALUE, before its command."""
    first: list[str] = []
    rest: list[str] = []
    left = iter(words)
    for word in left:
        said = [word, *islice(left, word == "-x")]
        (first if word.startswith("-x") and said != ["-x"] else rest).extend(said)
    return first + rest


def _started(one: TerritoryDatabase, command: list[str]) -> subprocess.Popen[str]:
    words = ["leadprotect", *command]
    if command[0] in ALEMBIC:
        words = ["alembic", "-c", str(ini_file()), *for_alembic(command)]
    return subprocess.Popen(  # noqa: S603 - our own program, no shell
        [sys.executable, "-m", *words],
        env=os.environ | {ON: one.territories[0], "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        start_new_session=True,  # Ctrl-C of a terminal reaches us alone, and we stop all of them alike
    )  # fmt: skip


def _parsed(lines: list[str]) -> Any:
    """One JSON value, or one for each line; lines as they stand where it is neither."""
    text = "\n".join(lines)
    try:
        return json.loads(text) if text.strip() else None
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError:
        return tuple(lines)
