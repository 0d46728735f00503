"""A guard whose gates say what a test writes into a file: `python -m tests.support.scripted FILE guard -- COMMAND...`.

Everything else is real: the command, its process, the database, the rollback, the signals.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from leadprotect.cli import guard as command
from leadprotect.cli import main
from leadprotect.gates.verdict import Answer, Evaluation, Verdict
from leadprotect.settings.databases import ON
from tests.support.database import ROOT, Database
from tests.support.forked import Forked

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERY = ("--interval", "1s", "--bake", "1s", "--resume-after", "1")


def evaluation(said: str) -> Evaluation:
    """One answer; the time of it is that of a clock which is two hours off, on which nothing may depend."""
    answer = Answer("scripted", "a file", 1.0, 2.0, Verdict(said), f"the file says {said}")
    return Evaluation(datetime.fromtimestamp(time.time() - 7200, UTC), (answer,))


@dataclass
class Process:
    """A running command, and what it has said so far."""

    process: Forked
    file: Path | None = None
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def gates(self, verdict: str) -> None:
        """What they say from now on."""
        assert self.file
        beside = self.file.with_suffix(".new")
        beside.write_text(verdict)
        beside.replace(self.file)

    def until(self, text: str, *, times: int = 1, seconds: float = 120) -> None:
        """Wait until it has said so, so many times."""
        end = time.monotonic() + seconds
        while self.said.count(text) < times:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, f"{text!r} was not said:\n{self.said}"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def ended(self, *, seconds: float = 120) -> int:
        code = self.process.wait(seconds)
        self.reader.join(seconds)  # the last lines are on their way
        return code


@contextmanager
def running(words: list[str], environment: dict[str, str], file: Path | None = None) -> Iterator[Process]:
    """A process that is ended with the block."""
    with Forked(words, environment, cwd=ROOT) as process:
        found = Process(process, file)
        try:
            yield found
        finally:
            found.kill()
            found.reader.join(60)


@contextmanager
def guarding(
    database: Database, file: Path, *words: str, verdict: str = "PROCEED", options: tuple[str, ...] = EVERY
) -> Iterator[Process]:
    """A scripted guard over `words`."""
    file.write_text(verdict)
    command = ["tests.support.scripted", str(file), "guard", *options, "--", *words]
    with running(command, environment_of(database), file) as found:
        yield found


def environment_of(database: Database) -> dict[str, str]:
    """That of this process, with the settings of the database instead of its own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("LEADPROTECT_")}
    return own | database.environment


def read(file: Path) -> Any:
    return lambda _settings, _before: evaluation(file.read_text().strip())


if __name__ == "__main__":
    # of several databases, a file for each
    script = Path(f"{sys.argv[1]}{os.environ.get(ON, '')}")
    with patch.object(command, "_ask", read(script)):
        main(sys.argv[2:])
