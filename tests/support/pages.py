"""The pages of the documentation as a reader takes them: blocks, commands, and what a page shows of their answers."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.database import ROOT

if TYPE_CHECKING:
    from pathlib import Path

HOW_TO = ROOT / "docs/how-to"
FENCED = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
RUN = ("console", "sql", "postgresql", "ini")
"""What a reader types, or writes into a file; `text` is only read, and Python has tests of its own."""

_VARIES = (
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d\S*", "<time>"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>"),
    (r"\b[0-9a-f]{4,}\.\.\.|\b[0-9a-f]{64}\b", "<hash>"),
    (r"\d[\d.,:]*", "<number>"),
    (r" WITH INHERIT TRUE, SET TRUE", ""),  # from PostgreSQL 16 on
    (r"\s+", " "),
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page, by its place among those that are run."""

    page: str
    number: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page} {self.number}"

    @property
    def commands(self) -> list[tuple[str, str]]:
        """Each command of a shell, and what the page shows of its answer."""
        return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", self.text, re.MULTILINE)

    @property
    def statements(self) -> list[str]:
        """Each statement of SQL; a body between dollars or in BEGIN ATOMIC is one with its function."""
        found, open_ = [""], ""
        for line in self.text.splitlines(keepends=True):
            found[-1] += line
            if mark := re.search(r"\$\$|BEGIN ATOMIC|^END;", line):
                open_ = "" if open_ else mark[0]
            if not open_ and re.search(r";\s*(--.*)?$", line):
                found.append("")
        return [one.strip() for one in found if one.strip()]


def blocks(path: Path) -> list[Block]:
    """What a page tells to type or to write into a file, in order."""
    fenced = [(kind, text) for kind, text in FENCED.findall(path.read_text(encoding="utf-8")) if kind in RUN]
    return [Block(path.stem, number, kind, textwrap.dedent(text)) for number, (kind, text) in enumerate(fenced)]


def not_said(shown: str, said: str) -> list[str]:
    """Lines that a page shows and that did not come, in this order; `...` stands for any, and numbers vary."""
    coming = iter([_alike(line) for line in said.splitlines()])
    wanted = [line for line in shown.splitlines() if line.strip() and not line.strip().startswith("...")]
    return [line for line in wanted if not any(_fits(_alike(line), come) for come in coming)]


def _alike(line: str) -> str:
    for varies, name in _VARIES:
        line = re.sub(varies, name, line)
    return line.strip()


def _fits(shown: str, came: str) -> bool:
    """A line of a page may leave out its end, too."""
    return came == shown or (shown.endswith("...") and came.startswith(shown.removesuffix("...")))
