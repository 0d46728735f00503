"""What a guard may guard: ``alembic upgrade``, one revision at a time, and ``leadprotect backfill``; nothing else."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from alembic import command as commands
from alembic.config import CommandLine, Config
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError

from leadprotect.errors import InvalidRequest
from leadprotect.settings.load import check_readable

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Mapping, Sequence

KNOWN = "leadprotect guard guards `alembic upgrade REVISION` and `leadprotect backfill TERRITORY...`"
_LOOKS_ONLY = ("--dry-run", "--verify", "--help", "-h")
_FROM_ANOTHER_SHELL = ("status", "pause", "resume", "stop")
_LAST_LINES = 20


@dataclass
class Upgrade:
    """``alembic upgrade``: the config it reads, its options, and the revision it ends at."""

    words: tuple[str, ...]
    config: Config
    options: tuple[str, ...]
    tag: tuple[str, ...]
    target: str

    def pending(self, present: str | None) -> list[str]:
        """The revisions after `present`, the next one first; raises `InvalidRequest` for a target that is none."""
        scripts = self._scripts()
        try:
            found = [one.revision for one in scripts.iterate_revisions(self.target, present or "base")]
        except (CommandError, RevisionError) as error:
            raise InvalidRequest(f"{shlex.join(self.words)}: {error}") from None
        return found[::-1]

    def fix_target(self, present: str | None) -> None:
        """What a relative target (+2) means now, it means until the end."""
        if pending := self.pending(present):
            self.target = pending[-1]

    def applied(self, present: str | None) -> list[str]:
        """The revisions that stand, the first one first."""
        scripts = self._scripts()
        return [one.revision for one in scripts.iterate_revisions(present, "base")][::-1] if present else []

    def _scripts(self) -> ScriptDirectory:
        try:
            return ScriptDirectory.from_config(self.config)
        except CommandError as error:
            raise InvalidRequest(f"{shlex.join(self.words)}: {error}") from None

    def step(self, revision: str) -> tuple[str, ...]:
        """The words that apply one revision."""
        return ("alembic", *self.options, "upgrade", *self.tag, revision)


@dataclass
class Backfill:
    """``leadprotect backfill``: one step, whose revision stays as it is; `ini` is the file of its own ``-c``."""

    words: tuple[str, ...]
    ini: str | None = None

    def step(self) -> tuple[str, ...]:
        """The words that run it."""
        return ("leadprotect", *self.words[1:])


Rollout = Upgrade | Backfill


def read_command(words: Sequence[str]) -> Rollout:
    """What stands behind ``--``; raises `InvalidRequest` for what is not ours to guard."""
    program = PurePath(words[0]).name if words else ""
    if program == "alembic":
        return _upgrade(tuple(words))
    if program == "leadprotect":
        return _backfill(tuple(words))
    raise InvalidRequest(f"{KNOWN}, not {words[0]!r}" if words else f"{KNOWN}: name one of them behind --")


def _upgrade(words: tuple[str, ...]) -> Upgrade:
    options = _parsed(words)
    if getattr(options, "cmd", (None,))[0] is not commands.upgrade or options.sql:
        raise InvalidRequest(f"{KNOWN}, not `{shlex.join(words)}`")
    given = [options.config] if isinstance(options.config, str) else options.config or []
    pairs = [("-c", file) for file in given] + [("-x", one) for one in options.x or []]
    pairs += [("-n", options.name)] if options.name != "alembic" else []
    check_readable(Path(given[0] if given else "alembic.ini"))
    config = _config(options, given)
    config.attributes["configure_logger"] = False
    tag = ("--tag", options.tag) if options.tag else ()
    return Upgrade(words, config, tuple(word for pair in pairs for word in pair), tag, options.revision)


def _parsed(words: tuple[str, ...]) -> Namespace:
    parser: ArgumentParser = CommandLine("alembic").parser
    said = StringIO()
    try:
        with redirect_stderr(said):
            return parser.parse_args(words[1:])
    except SystemExit:
        why = (said.getvalue().splitlines() or [""])[-1].strip()
        raise InvalidRequest(f"`{shlex.join(words)}` is no command of Alembic: {why}") from None


def _config(options: Namespace, given: list[str]) -> Config:
    """As Alembic itself would make it, of its ini file and, where it knows that, of pyproject.toml."""
    line = CommandLine("alembic")
    if hasattr(line, "_inis_from_config"):
        toml, ini = line._inis_from_config(options)  # noqa: SLF001 - only there it stands which of both is read
        return Config(file_=ini, toml_file=toml, ini_section=options.name, cmd_opts=options)
    return Config(file_=given[0] if given else "alembic.ini", ini_section=options.name, cmd_opts=options)


def _backfill(words: tuple[str, ...]) -> Backfill:
    rest = list(words[1:])
    ini: str | None = None
    while rest[:1] and rest[0] in ("-c", "--config"):
        ini = rest[1] if len(rest) > 1 else None
        del rest[:2]
    if rest[:1] != ["backfill"] or rest[1:2] == [] or rest[1] in _FROM_ANOTHER_SHELL or {*rest} & {*_LOOKS_ONLY}:
        raise InvalidRequest(f"{KNOWN}, not `{shlex.join(words)}`")
    return Backfill(words, ini)


@dataclass
class Child:
    """A running command; `heard` is called for each of its lines, `ended` with its exit code, both from a thread.

    It has no terminal, so that Ctrl-C reaches the guard alone, who decides what becomes of it. One that `listens` is
    told lines, and hears the end of them where this process dies.
    """

    words: tuple[str, ...]
    heard: Callable[[str], None]
    ended: Callable[[int], None]
    last: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    process: subprocess.Popen[str] | None = None
    environment: Mapping[str, str] | None = None
    listens: bool = False

    def start(self) -> None:
        """Run it by this Python, and read what it says until it ends."""
        self.process = subprocess.Popen(  # noqa: S603 - parsed above: a command of ours
            [sys.executable, "-P", "-m", *self.words], text=True, errors="replace", start_new_session=True,
            stdin=subprocess.PIPE if self.listens else subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=self.environment,
        )  # fmt: skip
        threading.Thread(target=self._read, name="leadprotect-guard-step", daemon=True).start()

    def say(self, line: str) -> None:
        """Tell it one line."""
        if self.process and self.process.stdin:
            with suppress(OSError, ValueError):  # it has ended, which is heard elsewhere
                self.process.stdin.write(f"{line}\n")
                self.process.stdin.flush()

    def interrupt(self) -> None:
        """As Ctrl-C does: it ends what it does in good order."""
        if self.process and self.running:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGINT)

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def wait(self, seconds: float) -> None:
        """Until it has ended, at most so long."""
        with suppress(subprocess.TimeoutExpired):
            if self.process:
                self.process.wait(max(seconds, 0.0))

    @property
    def pid(self) -> int:
        """Its process; 0 before it was started."""
        return self.process.pid if self.process else 0

    @property
    def why(self) -> str:
        """The last thing that it said."""
        return next((line for line in reversed(self.last) if line.strip()), "it said nothing")

    def _read(self) -> None:
        if process := self.process:
            with process:
                for line in process.stdout or ():
                    self.last.append(line.rstrip())
                    self.heard(line.rstrip())
            self.ended(process.returncode)
