"""A chain of revisions as its files have it: nothing of them is executed, so a broken one can be read, too."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadprotect.errors import ChainError
from leadprotect.settings.files import ini_file, migrations, version_path
from leadprotect.settings.load import check_readable

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_ID = 32
"""Characters of an id: Alembic's version table is VARCHAR(32)."""

ID = re.compile(r"(?P<prefix>[a-z][a-z0-9]*)_(?P<number>\d{4})_(?P<phase>expand|migrate|contract)_(?P<name>[a-z0-9_]+)")
PREFIX = re.compile(r"[a-z][a-z0-9]{0,7}")
_NUMBERED = re.compile(r"(?P<prefix>[A-Za-z][A-Za-z0-9]*)_(?P<number>\d{4})_")
_OURS = "leadprotect.migration"
"""What an env.py imports that hands over to ours."""


@dataclass(frozen=True)
class RevisionFile:
    """One file of the chain; `lines` tells where it assigns each of its attributes."""

    file: Path
    source: str
    tree: ast.Module
    values: dict[str, Any]
    lines: dict[str, int]

    @property
    def id(self) -> str:
        """Its `revision`, or the name of its file where it has none."""
        given = self.values.get("revision")
        return given if isinstance(given, str) else self.file.stem

    @property
    def below(self) -> tuple[str, ...]:
        """What it names as its predecessors."""
        given = self.values.get("down_revision")
        return (given,) if isinstance(given, str) else tuple(given or ())

    @property
    def phase(self) -> str | None:
        """As it declares it."""
        return self.values.get("phase")

    @property
    def number(self) -> int | None:
        """As its id tells; None where the id is no number's."""
        found = _NUMBERED.match(self.id)
        return int(found["number"]) if found else None

    @property
    def doc(self) -> str:
        """Its docstring, as it stands."""
        return ast.get_docstring(self.tree, clean=False) or ""

    def line(self, attribute: str) -> int:
        """Where it assigns an attribute; the first line where it doesn't."""
        return self.lines.get(attribute, 1)

    def line_of(self, text: str) -> int:
        """The first line that holds a text; the first of all where none does."""
        return next((n for n, line in enumerate(self.source.splitlines(), start=1) if text in line), 1)

    def function(self, name: str) -> ast.FunctionDef | None:
        """One of its functions."""
        return next((one for one in self.tree.body if isinstance(one, ast.FunctionDef) and one.name == name), None)

    @cached_property
    def texts(self) -> tuple[tuple[int, str], ...]:
        """Its SQL, and whatever else stands between quotes, with the line where it begins; no docstring."""
        documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
        docs = {id(node.body[0].value) for node in ast.walk(self.tree)
                if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
        found = (node for node in ast.walk(self.tree) if isinstance(node, ast.Constant) and id(node) not in docs)
        return tuple(sorted((node.lineno, node.value) for node in found if isinstance(node.value, str)))

    def matches(self, pattern: re.Pattern[str]) -> Iterator[tuple[int, re.Match[str]]]:
        """Where a pattern stands in `texts`."""
        for begin, text in self.texts:
            for found in pattern.finditer(text):
                yield begin + text.count("\n", 0, found.start()), found


@dataclass(frozen=True)
class RevisionChain:
    """The revisions of one folder; `prefix` is that of the ids to come, and None where nothing tells it."""

    folder: Path
    scripts: Path
    ini: Path
    prefix: str | None
    revisions: tuple[RevisionFile, ...]
    others: frozenset[str] = field(default=frozenset())

    @property
    def is_ours(self) -> bool:
        """Whether it is leadprotect's own."""
        return self.folder == Path(version_path())

    @cached_property
    def own_environment(self) -> bool:
        """Whether its env.py is leadprotect's, which sets lock_timeout for each revision."""
        file = self.scripts / "env.py"
        return file.is_file() and _OURS in file.read_text(encoding="utf-8")

    @property
    def numbered(self) -> tuple[RevisionFile, ...]:
        """Those with a number, and whatever stands on one; what a project had before is its history."""
        return tuple(one for one in self.revisions if any(below.number is not None for below in self.back(one)))

    @cached_property
    def heads(self) -> tuple[RevisionFile, ...]:
        """Whom nobody follows."""
        followed = {name for one in self.revisions for name in one.below}
        return tuple(one for one in self.revisions if one.id not in followed)

    @property
    def head(self) -> RevisionFile | None:
        """The only head; None where there is no revision at all."""
        return self.heads[0] if self.heads else None

    def get(self, revision: str) -> RevisionFile | None:
        """The revision of an id."""
        return next((one for one in self.revisions if one.id == revision), None)

    def back(self, revision: RevisionFile) -> Iterator[RevisionFile]:
        """A revision and what it stands on, down to the base or to where the chain breaks."""
        seen: set[str] = set()
        at: RevisionFile | None = revision
        while at and at.id not in seen:
            seen.add(at.id)
            yield at
            at = self.get(at.below[0]) if at.below else None

    @property
    def linked(self) -> tuple[RevisionFile, ...]:
        """From the base to the head, as Alembic runs them."""
        return tuple(reversed(list(self.back(self.head)))) if self.head else ()

    @property
    def next_number(self) -> int:
        """One more than the highest."""
        return max((one.number or 0 for one in self.revisions), default=0) + 1


def read_chain(prefix: str | None = None, *, ini: Path | None = None) -> RevisionChain:
    """The chain that the ini file's ``script_location`` or ``version_locations`` name: a host's own, where both are.

    Raises `ChainError` where there is none, more than one, or a file that Python can't read.
    """
    from alembic.config import Config  # noqa: PLC0415 - a page of help needs none
    from alembic.script import ScriptDirectory  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    file = ini or ini_file()
    if not file.is_file():
        raise ChainError(f"there is no {file} here: leadprotect init writes one, or name yours with --config")
    check_readable(file)
    try:
        script = ScriptDirectory.from_config(Config(str(file)))
    except CommandError as error:
        raise ChainError(f"{file}: {error}") from None
    places = [Path(place).resolve() for place in script.version_locations or [str(Path(script.dir) / "versions")]]
    ours = Path(version_path()).resolve()
    own = [place for place in places if place != ours] or [ours]
    if len(own) > 1:
        named = ", ".join(map(str, own))
        raise ChainError(f"{file}: version_locations names several folders ({named}); one chain has one folder")
    revisions = tuple(sorted(map(read_revision, sorted(own[0].glob("*.py"))), key=_order))
    others = frozenset(path.stem for place in places if place != own[0] for path in place.glob("*.py"))
    return RevisionChain(own[0], Path(script.dir).resolve(), file, prefix or _common(revisions), revisions, others)


def read_revision(file: Path) -> RevisionFile:
    """One file; raises `ChainError` where Python can't read it."""
    source = file.read_text(encoding="utf-8")
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ChainError(f"{file}:{error.lineno}: Python can't read it: {error.msg}") from None
    values, lines = {}, {}
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if isinstance(target, ast.Name):
                values[target.id], lines[target.id] = _literal(node.value), node.lineno
    return RevisionFile(file, source, tree, values, lines)


def require_own_folder(chain: RevisionChain) -> None:
    """Raises `ChainError` where the package brings the chain: a file in it is gone with the next install."""
    if chain.is_ours and migrations().parent == Path(__file__).resolve().parents[1]:
        raise ChainError(
            f"{chain.ini} runs the revisions that leadprotect brings, which are no place for yours: make a project of "
            "your own (alembic init migrations), or name your folder in version_locations beside it"
        )


def _order(one: RevisionFile) -> tuple[bool, int, str]:
    return one.number is not None, one.number or 0, one.file.name


def _common(revisions: tuple[RevisionFile, ...]) -> str | None:
    """The prefix that most ids have."""
    found = Counter(match["prefix"] for one in revisions if (match := ID.fullmatch(one.id)))
    return found.most_common(1)[0][0] if found else None


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
