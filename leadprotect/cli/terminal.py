"""What a terminal shows, and how: text as it stands, folded at words, what is to be run whole on a line of its own.

What a lead is called is no instruction to the terminal. To a file or a pipe every line goes as it is: a program
searches whole lines.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from leadprotect.lab.sheet import Sheet

# control characters; then what turns the direction of a line, ends it, or takes no room: bounded() has them, too
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")

_USUAL = 80
_NARROWEST = 20
"""Room below which folded text is a column of single words: the table goes vertical instead."""

_BETWEEN = "  "
_INDENT = "     "
_ALARMING = {"no", "danger", "open", "TAMPERED", "DENY", "ROLLBACK", "missed", "not judged", "not tried", "UNKNOWN"}
_ALARMS = re.compile(r"(BROKEN|FAILED|INCOMPLETE|TAMPERED WITH|NOT AS IT MUST BE|Error|danger|ROLLBACK|UNKNOWN)\b")
"""How a line begins that says no."""

_PROGRAM = r"(?:leadprotect(?! (?:needs|is|itself|serves|works|reads) )|alembic|psql|pgbench|pip|make|createdb|dropdb)"
_QUOTED = r"'[^']*'|\"[^\"]*\""
_OPTION = rf"--?[A-Za-z][\w-]*(?:[= ](?:{_QUOTED}|[^\s-][^\s,;]*))?|--"
_WORD = rf"(?:{_QUOTED}|{_OPTION}|[A-Z_\[][\w./:|*\]-]*|[^\s,;]*[\d/_=][^\s,;]*)"
_COMMAND = rf"{_PROGRAM}(?: -\w)?(?: {_WORD})*(?: [a-z][a-z-]+){{0,2}}(?: {_WORD})*"
_NAME = r"(?:\"(?:[^\"]|\"\")+\"(?:\.\"(?:[^\"]|\"\")+\")?|[\w.{{}}]+|\.\.\.)"
_KINDS = (
    r"TABLE|ROLE|USER|DATABASE|SCHEMA|VIEW|MATERIALIZED VIEW|FUNCTION|POLICY|INDEX|TRIGGER|EXTENSION|DEFAULT PRIVILEGES"
    r"|EVENT TRIGGER|SYSTEM|SEQUENCE|RULE|PUBLICATION|SUBSCRIPTION|TYPE|CONSTRAINT|UNIQUE INDEX|OR REPLACE|OPERATOR"
)
_STATEMENT = (
    rf"(?:GRANT .+ TO|REVOKE .+ FROM|(?:ALTER|CREATE|DROP) (?:{_KINDS})|UPDATE {_NAME} SET"
    r"|DELETE FROM (?=\S+ WHERE)|INSERT INTO (?=\S+[ (])"
    r"|(?:VACUUM|ANALYZE|REINDEX|RESET|SET|SELECT|COMMENT ON|REASSIGN OWNED BY|DROP OWNED BY) (?=[\w\"]+.*;$)).*"
)
_PASTED = re.compile(rf"(?:{_COMMAND}|{_STATEMENT})", re.DOTALL)
_LEADS_TO = re.compile(
    rf"(?:: |; (?:or )?|\b(?:or|run|with) )(?={_PROGRAM} |GRANT |REVOKE |ALTER |CREATE |DROP |UPDATE )"
)
_COUNT = re.compile(r"(?<![\w.,:-])\d{4,}(?= (?:of \d+ )?(?:leads|rows|activities|owners|rules)\b)")
_ONE_STATEMENT = re.compile(_STATEMENT)
_NEXT_STATEMENT = re.compile(r"(?<=;) (?=[A-Za-z])")


def plain(text: str) -> str:
    """`text` without control characters but the end of a line, and without what is not seen: it reads as it is."""
    return _CONTROL.sub(" ", text)


def room(*, err: bool = False) -> int | None:
    """Columns of the terminal that is written to; None of a file or a pipe, which has no width."""
    stream = sys.stderr if err else sys.stdout
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL
    except (OSError, ValueError):
        return _USUAL


def echo(text: str, *, err: bool = False) -> None:
    """Print lines, plain; on a terminal folded at words, and what can be run on lines of their own, whole."""
    show(laid_out(plain(text), room(err=err)), err=err)


def verbatim(text: str, *, err: bool = False) -> None:
    """Print a script or a file, plain, every line as it is."""
    click.echo(plain(text), err=err)


def show(lines: Sequence[str], *, err: bool = False) -> None:
    """Print laid out lines; what begins by saying no is red where colours are seen."""
    for line in lines:
        click.echo(_ALARMS.sub(lambda no: painted(no[0]), line, count=1) if _ALARMS.match(line) else line, err=err)


def remedy(text: str | None) -> None:
    """Print below what it is about what mends it: whole lines to run, and prose between."""
    for step in remedy_lines(plain(text or "")):
        for line in [step] if pasted(step) else folded_at_words(step, (room() or sys.maxsize) - len(_INDENT)):
            click.echo(_INDENT + line)


def told(name: str, detail: str, mends: str | None, *, verdict: str = "no") -> None:
    """Print what does not hold: its name behind the verdict in red, below it the detail and what mends it."""
    click.echo(f"{painted(verdict)}{' ' * max(len(_INDENT) - len(verdict), 2)}{plain(name)}")
    prose = plain(detail) if room() is None else _counted(plain(detail))
    for line in folded_at_words(prose, (room() or sys.maxsize) - len(_INDENT)):
        click.echo(_INDENT + line)
    remedy(mends)


def painted(text: str) -> str:
    """The text in the colour of a no; as it is where somebody asked for none (https://no-color.org)."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg="red", bold=True)


def pasted(text: str) -> bool:
    """Whether it is, as a whole, something to run: a command of a shell, or a statement."""
    return _PASTED.fullmatch(text) is not None


def remedy_lines(remedy: str | None) -> list[str]:
    """A remedy as lines, each either whole to run, or prose between."""
    return [step for line in (remedy or "").splitlines() for step in _parted(line.strip()) if step]


def laid_out(text: str, columns: int | None) -> list[str]:
    """Lines for so many columns: prose folded at words, and what can be run on lines of their own, never cut."""
    if columns is None:
        return text.split("\n")
    return [laid for line in text.split("\n") for laid in _laid(line, columns)]


def show_table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Sequence[str] = (),
    folds: Sequence[str] = (),
    err: bool = False,
) -> None:
    """Print a table that fits: whole, or with the columns `folds` folded at words, or each row vertically.

    Columns of `numbers` stand right. Ids are never cut.
    """
    columns = room(err=err)
    shown = _counted if columns else str
    grid = Grid([*header], [[shown(plain("" if cell is None else str(cell))) for cell in row] for row in rows])
    for line in grid.laid_out(columns, numbers=numbers, folds=folds):
        click.echo(line, err=err)


def show_sheet(sheet: Sheet, *, err: bool = False) -> None:
    """Print a table of the lab below its title, with a line's room around it."""
    echo(f"\n{sheet.title}" if sheet.title else "", err=err)
    show_table(sheet.header, sheet.rows, numbers=sheet.numbers, folds=sheet.folds, err=err)
    click.echo(err=err)


@dataclass(frozen=True)
class Grid:
    """A table's cells, as text."""

    header: list[str]
    rows: list[list[str]]

    def laid_out(self, columns: int | None, *, numbers: Sequence[str] = (), folds: Sequence[str] = ()) -> Iterator[str]:
        """The lines for so many columns."""
        widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in self._columns()]
        spare = (columns or sys.maxsize) - sum(widths) - len(_BETWEEN) * (len(widths) - 1)
        if spare < 0 and folds:
            widths, spare = self._narrowed(widths, spare, folds)
        if spare < 0 and self.rows:
            yield from self._vertical(columns or _USUAL)
            return
        for row in (self.header, *self.rows):
            yield from self._line(row, widths, numbers)

    def _columns(self) -> Iterator[tuple[str, ...]]:
        yield from zip(self.header, *self.rows, strict=True)

    def _narrowed(self, widths: list[int], spare: int, folds: Sequence[str]) -> tuple[list[int], int]:
        """The widest of the columns that may fold, one after the other, give what is lacking."""
        widths = [*widths]
        longest = [max(len(word) for cell in column for word in cell.split() or [""]) for column in self._columns()]
        for at in sorted((self.header.index(name) for name in folds), key=lambda at: -widths[at]):
            kept = max(_NARROWEST, longest[at], widths[at] + min(spare, 0))
            spare += max(widths[at] - kept, 0)
            widths[at] = min(kept, widths[at])
        return widths, spare

    def _line(self, row: list[str], widths: list[int], numbers: Sequence[str]) -> Iterator[str]:
        """The lines of a row: its cells beside each other, folded where they are wider than their column."""
        folded = [folded_at_words(cell, width) for cell, width in zip(row, widths, strict=True)]
        for pieces in zip_longest(*folded, fillvalue=""):
            cells = [
                _cell(piece, width, right=name in numbers, head=row is self.header)
                for name, piece, width in zip(self.header, pieces, widths, strict=True)
            ]
            yield _BETWEEN.join(cells).rstrip()

    def _vertical(self, columns: int) -> Iterator[str]:
        """A block a row: its first cell, and below it each other that holds something, after its name."""
        wide = max(len(name) for name in self.header[1:]) if self.header[1:] else 0
        for row in self.rows:
            yield f"{self.header[0]} {row[0]}"
            for name, cell in zip(self.header[1:], row[1:], strict=True):
                if not cell:
                    continue
                first, *others = folded_at_words(cell, max(columns - wide - 4, _NARROWEST))
                yield f"  {name:<{wide}}  {_coloured(first)}"
                yield from (" " * (wide + 4) + other for other in others)


def folded_at_words(text: str, width: int, *, hanging: str = "") -> list[str]:
    """Lines of at most `width` columns, but where a word is wider: no word is ever cut."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line.strip() and len(longer) > width:
                lines.append(line)
                longer = hanging + word
            line = longer
        lines.append(line)
    return lines


def _cell(text: str, width: int, *, right: bool, head: bool) -> str:
    padding = " " * (width - len(text))
    shown = click.style(text, bold=True) if head and text and not os.environ.get("NO_COLOR") else _coloured(text)
    return padding + shown if right else shown + padding


def _coloured(text: str) -> str:
    return painted(text) if text in _ALARMING else text


def _laid(line: str, columns: int) -> Iterator[str]:
    body = line.lstrip(" ")
    indent = line[: len(line) - len(body)]
    for number, step in enumerate(_parted(body)):
        if pasted(step):
            yield (indent + "  " if number else indent) + step
        else:
            prose = _counted(step)
            yield from (indent + piece for piece in folded_at_words(prose, columns - len(indent), hanging="  "))


def _counted(text: str) -> str:
    """Counts that the database wrote into a sentence, with separators."""
    return _COUNT.sub(lambda found: f"{int(found[0]):,}", text)


def _parted(text: str) -> list[str]:
    """Prose and, on a line of its own, what it says to run; in one piece where it goes on after that."""
    for ends in _NEXT_STATEMENT.finditer(text):
        if _ONE_STATEMENT.fullmatch(text[: ends.start()]):
            return [text[: ends.start()], *_parted(text[ends.end() :])]
    if pasted(text):
        return [text]
    for found in _LEADS_TO.finditer(text):
        if pasted(text[found.end() :]):
            return [text[: found.end()].rstrip(), text[found.end() :]]
    return [text]
