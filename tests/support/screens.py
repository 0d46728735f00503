"""A real terminal of some width: what somebody sees there who runs a command."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.programs import program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WIDTHS = (60, 80, 140)
FOLDER = Path(__file__).parents[1] / "screens"
_ROWS = 200
_RUN = "from leadprotect.cli import main; main(prog_name='leadprotect')"
_LEADPROTECT = f"{shlex.quote(sys.executable)} -c {shlex.quote(_RUN)}"


@dataclass(frozen=True)
class Terminal:
    """A terminal that runs one command at a time."""

    columns: int
    socket: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def tmux(self, *arguments: str) -> str:
        command = [program("tmux", "tmux"), "-S", str(self.socket), "-f", "/dev/null", *arguments]
        # a worker of pytest-xdist says how wide the terminal of its master is
        inherited = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
        plain = inherited | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=plain).stdout

    def run(self, command: str) -> None:
        """Run a command of a shell there to its end; `leadprotect` is the one of these tests."""
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment.items())
        # whatever has a language or a colour of its own here has none there
        line = f"env -u NO_COLOR {given} sh -c {shlex.quote(command.replace('leadprotect ', _LEADPROTECT + ' ', 1))}"
        done = f'echo "exit code $?"; {self._say("wait-for", "-S", "done")}; sleep 600'
        size = ("-x", str(self.columns), "-y", str(_ROWS))
        self.tmux("new-session", "-d", *size, f"{line}; {done}")
        self.tmux("wait-for", "done")

    def seen(self) -> str:
        """The screen as somebody sees it, without what is blank below."""
        return _without_blanks(self.tmux("capture-pane", "-p"))

    def copied(self) -> list[str]:
        """The lines as a mouse copies them: what the terminal itself broke is whole again."""
        return self.tmux("capture-pane", "-p", "-J").rstrip().splitlines()

    def painted(self) -> str:
        """The screen with its colours."""
        return self.tmux("capture-pane", "-p", "-e")

    def _say(self, *arguments: str) -> str:
        return shlex.join([program("tmux", "tmux"), "-S", str(self.socket), *arguments])


@contextmanager
def terminal(columns: int, folder: Path, environment: Mapping[str, str]) -> Iterator[Terminal]:
    """A terminal that ends with the block."""
    made = Terminal(columns, folder / "t", environment)
    made.tmux("start-server", ";", "new-session", "-d", "-s", "keep", "sleep 600")
    try:
        yield made
    finally:
        made.tmux("kill-server")


def normal(seen: str, known: Mapping[str, str]) -> str:
    """A screen without what is another at every run; what stands for it is as long, so that lines end where they did.

    `known` are texts of this run and what stands for each.
    """
    for text, instead in known.items():
        assert len(text) == len(instead), (text, instead)
        seen = seen.replace(text, instead)
    seen = re.sub(r"\d{4}-\d\d-\d\d([ T])\d\d:\d\d(:\d\d)?", lambda at: re.sub(r"\d", "0", at[0]), seen)
    return re.sub(r"\b\d+\.\d (k?B|MB|s)\b", lambda size: re.sub(r"\d", "0", size[0]), seen)


def compare(name: str, columns: int, seen: str) -> None:
    """Hold a screen against the file of its name; SCREENS=1 writes the files anew."""
    file = FOLDER / f"{name}-{columns}.txt"
    if os.environ.get("SCREENS") == "1":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(seen, encoding="utf-8")
    assert file.exists(), f"{file} is missing; look at the screen, then write it: SCREENS=1 pytest -k {name}\n{seen}"
    assert file.read_text(encoding="utf-8") == seen, f"look whether it is better, then: SCREENS=1 pytest -k {name}"


def _without_blanks(screen: str) -> str:
    return "\n".join(line.rstrip() for line in screen.rstrip().splitlines()) + "\n"
