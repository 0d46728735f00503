"""Plays the tutorial in a kept demo, and writes the answers into the page and a picture (`make tutorial`)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.database import ROOT
from tests.support.pages import Block, blocks
from tests.support.svg import LINE, PAD, Picture

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE, IMAGE = ROOT / "docs/tutorial/index.md", ROOT / "docs/images/terminal.svg"
COLUMNS = 100
"""Letters in a line of the picture."""

PICTURED = ("upgrade head", "backfill", "SET app.territory")
"""Commands of the tutorial that the picture shows, the first answer of the first kind being that of the gate."""

_SILENT = re.compile(
    r"INFO +\[alembic.*(Context impl|Will assume)|^[A-Z ]+: [\d,]+ of about |^\w+_quarantine, |^\s*$|^[┃│├└┏┡]"
)
_STEP = re.compile(r"INFO +\[alembic[^]]*\] Running (?:up|down)grade ")


@contextmanager
def kept_demo(scale: float) -> Iterator[str]:
    """The lines that a kept demo prints for copying: a folder, an URL and a PATH; its server ends with the block."""
    command = [sys.executable, "-m", "leadprotect", "demo", "--scale", str(scale), "--keep"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line.strip() for line in told.splitlines()]
    end = next(line for line in lines if line.startswith("kill -INT ")).split("#", maxsplit=1)[0]
    try:
        yield "\n".join(line for line in lines if line.startswith(("cd ", "export ")))
    finally:
        subprocess.run(["sh", "-c", end], check=True)


def answer(shell: str, command: str) -> str:
    """What a command of the page says, both streams in turn; raises where it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LEADPROTECT_")}
    done = subprocess.run(
        ["sh", "-ec", f"{shell}\n{command}"], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stderr + done.stdout


def abridged(said: str) -> list[str]:
    """Without what a reader passes over: Alembic's words about itself, progress, drawn tables, steps in between."""
    kept: list[str] = []
    for line in map(str.rstrip, said.splitlines()):
        if _SILENT.search(line):
            left_out = bool(re.match("[┃│├└┏┡]", line))
            if left_out and kept[-1:] != ["..."]:
                kept.append("...")
        elif _STEP.match(line) and len(kept) > 1 and _STEP.match(kept[-1]):
            kept[-1:] = [*(["..."] if kept[-2] != "..." else []), line]
        else:
            kept.append(line)
    return kept


def with_answers(page: str, told: dict[str, list[list[str]]]) -> str:
    """The page with the answers under its commands, the first of a command under its first."""
    left = {command: iter(answers) for command, answers in told.items()}

    def answered(found: re.Match[str]) -> str:
        block = Block("tutorial", 0, "console", found[1])
        lines = [[f"$ {command}", *next(left[command])] for command, _ in block.commands]
        return "```console\n" + "\n".join(line for part in lines for line in part) + "\n```"

    return re.sub(r"^```console\n(.*?)^```", answered, page, flags=re.MULTILINE | re.DOTALL)


def terminal() -> str:
    """The picture of what the page shows: a terminal that ran it."""
    shown = [one for block in blocks(PAGE) for one in block.commands if any(word in one[0] for word in PICTURED)]
    made = Picture("leadprotect in a terminal: upgrade, backfill, upgrade, and the same SELECT as two logins", 760)
    y = 2 * PAD
    for command, said in shown[:6]:
        for number, line in enumerate([f"$ {command}", *said.splitlines()]):
            for part in textwrap.wrap(line, COLUMNS, subsequent_indent="    ") if len(line) > COLUMNS else [line]:
                made.text(PAD, y, part, "" if number else "typed")
                y += LINE
        y += LINE // 2
    return made.written()


def main() -> None:
    commands = [command for block in blocks(PAGE) for command, _ in block.commands]
    told: dict[str, list[list[str]]] = {command: [] for command in commands}
    with kept_demo(1) as shell:
        for kind, text in re.findall(
            r"^```(console|python)\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
        ):
            if kind == "python":
                answer(shell, f"{sys.executable} - <<'END'\n{text}END\n")
            else:
                for command, _ in Block("tutorial", 0, "console", text).commands:
                    told[command].append(abridged(answer(shell, command)))
    PAGE.write_text(with_answers(PAGE.read_text("utf-8"), told), encoding="utf-8")
    IMAGE.write_text(terminal(), encoding="utf-8")


if __name__ == "__main__":
    main()
