"""Makes a revision, and puts the newer of two branches behind the other."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadprotect import processes
from leadprotect.authoring.chain import LONGEST_ID, PREFIX, read_chain, read_revision, require_own_folder
from leadprotect.authoring.rules.ids import ids
from leadprotect.authoring.rules.numbering import numbering
from leadprotect.authoring.rules.one_head import one_head
from leadprotect.authoring.rules.phases_in_order import may_follow
from leadprotect.authoring.rules.placeholders import placeholders
from leadprotect.errors import ChainError, InvalidRequest
from leadprotect.phases import ORDER

if TYPE_CHECKING:
    from leadprotect.authoring.chain import RevisionChain, RevisionFile

_TEMPLATE = Path(__file__).with_name("revision.py.mako")
_CHAIN = (one_head, numbering, ids, placeholders)
_LATIN = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss"})


@dataclass(frozen=True)
class Made:
    """A revision that was written; `below` is the one it follows, None at the base."""

    revision: str
    file: Path
    below: str | None
    phase: str


@dataclass(frozen=True)
class Moved:
    """A revision that was renumbered."""

    before: str
    after: str
    file: Path
    below: str | None


def next_number(chain: RevisionChain) -> int:
    """The number of the next revision; raises `ChainError` where the chain is not clean."""
    require_clean(chain)
    return chain.next_number


def require_clean(chain: RevisionChain) -> None:
    """Raises `ChainError`, with file and remedy, for two heads, a gap, a number taken twice and a placeholder left."""
    for rule in _CHAIN:
        for found in rule(chain):
            raise ChainError(f"the chain is not clean, so nothing was written: {found}")


def new_revision(
    message: str, *, phase: str, name: str | None = None, prefix: str | None = None, ini: Path | None = None
) -> Made:
    """Write the next revision, linked to the head, from a template that asks why, which locks, and how it is undone.

    `name` is the subject in its id, the message's first words where it is None; `prefix` begins the ids of a
    chain that has none yet. Raises `ChainError` where the chain is not clean or `phase` can't follow its head.
    """
    title, subject = _title(message), name or _subject(message)
    if phase not in ORDER:
        raise InvalidRequest(f"phase: {phase!r} is not one of {', '.join(ORDER)}")
    if prefix is not None and not PREFIX.fullmatch(prefix):
        raise InvalidRequest(f"prefix: {prefix!r} is not a small letter and up to 7 more letters or digits")
    chain = read_chain(ini=ini)
    require_own_folder(chain)
    require_clean(chain)
    begins = _prefix(chain, prefix)
    head = chain.head
    if head is not None and not may_follow(head.phase, phase):
        later = " or ".join(one for one in ORDER if may_follow(head.phase, one))
        raise ChainError(
            f"{head.file}: {head.id} is of the phase {head.phase}, and {phase} may follow a contract only: "
            f"write --phase {later}"
        )
    revision = _id(begins, chain.next_number, phase, subject, given=name is not None)
    file = chain.folder / f"{revision}.py"
    _write(chain, file, message=title, up_revision=revision, down_revision=head.id if head else None, phase=phase)
    return Made(revision, file, head.id if head else None, phase)


def rebase(revision: str | None = None, *, ini: Path | None = None) -> tuple[Moved, ...]:
    """Put one of two branches behind the other: the newer one, or the one whose head is `revision`.

    Its files get the next numbers, their ids and links follow. Raises `ChainError` where there are no two heads,
    or nothing tells which is newer.
    """
    chain = read_chain(ini=ini)
    require_own_folder(chain)
    if len(chain.heads) != 2:  # noqa: PLR2004 - a branch and the other
        heads = ", ".join(one.id for one in chain.heads) or "none"
        raise ChainError(f"{chain.folder}: there is nothing to rebase: it needs two heads, and there are: {heads}")
    moving, staying = _sides(chain, revision)
    begins = _prefix(chain, None)
    below, number, moved = staying[-1], max(one.number or 0 for one in staying), []
    if below.phase and not may_follow(below.phase, moving[0].phase):
        raise ChainError(
            f"{moving[0].file}: {moving[0].phase} may not follow {below.phase} of {below.id}: "
            f"move the other branch instead: leadprotect new --rebase {below.id}"
        )
    planned = []
    for one in moving:
        number += 1
        subject = re.sub(r"^[A-Za-z0-9]+_(?:\w{4}_)?(?:expand|migrate|contract)_", "", one.id)
        planned.append((one, _id(begins, number, one.phase or "expand", subject, given=True)))
    below_id = below.id
    for one, after in planned:
        moved.append(_move(one, after, below_id))
        below_id = after
    return tuple(moved)


def _title(message: str) -> str:
    text = " ".join(message.split()).rstrip(".")
    if not text or '"""' in text or "\\" in text:
        raise InvalidRequest("message: say in a few words what the revision does, without a backslash")
    return text[0].upper() + text[1:]


def _subject(message: str) -> str:
    latin = unicodedata.normalize("NFKD", message.lower().translate(_LATIN))
    return re.sub(r"[^a-z0-9]+", "_", latin.encode("ascii", "ignore").decode()).strip("_")


def _prefix(chain: RevisionChain, given: str | None) -> str:
    if given and chain.prefix and given != chain.prefix:
        raise InvalidRequest(f"prefix: the chain's ids begin with {chain.prefix}_, so leave out --prefix {given}")
    if found := chain.prefix or given:
        return found
    raise ChainError(
        f"{chain.folder}: no id tells a prefix yet: leadprotect new ... --prefix crm begins the ids with crm_"
    )


def _id(prefix: str, number: int, phase: str, subject: str, *, given: bool) -> str:
    """Whole words of the subject, as many as fit; raises `InvalidRequest` where a given one does not."""
    head = f"{prefix}_{number:04}_{phase}_"
    room = LONGEST_ID - len(head)
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", subject):
        raise InvalidRequest(f"name: {subject!r} is not words of small letters and digits, joined by _")
    if given and len(subject) > room:
        raise InvalidRequest(f"name: {head}{subject} is longer than {LONGEST_ID} characters; {room} are left for it")
    while len(subject) > room:
        subject = subject.rpartition("_")[0] or subject[:room]
    return head + subject


def _write(chain: RevisionChain, file: Path, *, down_revision: str | None, **values: str) -> None:
    from alembic.util import template_to_file  # noqa: PLC0415

    template = chain.scripts / "script.py.mako" if chain.is_ours else _TEMPLATE
    linked = down_revision if chain.is_ours else json.dumps(down_revision) if down_revision else "None"
    given: dict[str, Any] = {"down_revision": linked, **values}
    template_to_file(str(template), file, "utf-8", **given)


# --- which of two branches is newer


def _sides(chain: RevisionChain, revision: str | None) -> tuple[list[RevisionFile], list[RevisionFile]]:
    """What moves, from its first revision on, and what it comes behind."""
    one, other = ([*reversed(list(chain.back(head)))] for head in chain.heads)
    shared = {each.id for each in one} & {each.id for each in other}
    sides = [[each for each in side if each.id not in shared] for side in (one, other)]
    if revision is not None:
        if revision not in {side[-1].id for side in sides}:
            heads = " and ".join(side[-1].id for side in sides)
            raise ChainError(f"{revision} is no head: the heads are {heads}")
        moving = next(side for side in sides if side[-1].id == revision)
    else:
        moving = _newer(sides)
    staying = one if moving is sides[1] else other
    return moving, staying


def _newer(sides: list[list[RevisionFile]]) -> list[RevisionFile]:
    """The branch that came last: uncommitted, or added by the newest commit."""
    ages = [min(_added(each.file) for each in side) for side in sides]
    if ages[0] == ages[1]:
        heads = " or ".join(side[-1].id for side in sides)
        raise ChainError(
            f"{sides[0][0].file.parent}: nothing tells which branch is newer: name the one to move, "
            f"leadprotect new --rebase {heads}"
        )
    return sides[ages.index(max(ages))]


def _added(file: Path) -> float:
    """When the file came, in seconds: infinity where it is not committed yet, its own time where there is no Git."""
    git = shutil.which("git")
    if git is None:
        return file.stat().st_mtime
    command = [git, "-C", str(file.parent), "log", "--diff-filter=A", "--format=%ct", "--", file.name]
    done = processes.run_program(command)
    if done.returncode:
        return file.stat().st_mtime
    return float(done.stdout.split()[0]) if done.stdout.split() else float("inf")


def _move(one: RevisionFile, after: str, below: str) -> Moved:
    """Write the file anew under its new name: its id wherever it stands, and its link."""
    lines = re.sub(rf"\b{re.escape(one.id)}\b", after, one.source).splitlines(keepends=True)
    lines[one.line("down_revision") - 1] = f'down_revision = "{below}"\n'
    source = re.sub(r"(?m)^Revises: .*$", f"Revises: {below}", "".join(lines))
    file = one.file.with_name(f"{after}.py")
    if file.exists() and file != one.file:
        raise ChainError(f"{file} is there already; nothing more was moved: take it away, and run the same again")
    file.write_text(source, encoding="utf-8")
    if file != one.file:
        one.file.unlink()
    read_revision(file)
    return Moved(one.id, after, file, below)
