"""An id tells prefix, place, phase and subject, and its file is named after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect.authoring.chain import ID, LONGEST_ID
from leadprotect.authoring.finding import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.authoring.chain import RevisionChain, RevisionFile


def ids(chain: RevisionChain) -> Iterator[Problem]:
    """Alembic's version table holds 32 characters; a longer id fails when it is stamped, after its work is done."""
    for one in chain.numbered:
        yield from _named(chain, one)


def _named(chain: RevisionChain, one: RevisionFile) -> Iterator[Problem]:
    line = one.line("revision")
    if len(one.id) > LONGEST_ID:
        yield Problem("ids", one.file, line, f"{one.id} has {len(one.id)} characters, and the version table holds "
                      f"{LONGEST_ID}", "shorten the part after the phase")  # fmt: skip
    if one.file.stem != one.id:
        yield Problem("ids", one.file, line, f"the file is called {one.file.name}, its revision {one.id}",
                      f"rename the file to {one.id}.py")  # fmt: skip
    found = ID.fullmatch(one.id)
    if not found:
        example = f"{chain.prefix or 'lp'}_{chain.next_number:04}_expand_subject"
        yield Problem("ids", one.file, line, f"{one.id} does not tell prefix, number, phase and subject",
                      f"call it as {example}, in small letters")  # fmt: skip
    elif chain.prefix and found["prefix"] != chain.prefix:
        said = f"{one.id} begins with {found['prefix']}, the others with {chain.prefix}"
        yield Problem("ids", one.file, line, said, f"begin it with {chain.prefix}_")
    elif one.phase != found["phase"]:
        yield Problem("ids", one.file, one.line("phase"), f"its id says {found['phase']}, its phase is {one.phase!r}",
                      f'write phase = "{found["phase"]}", or change the id')  # fmt: skip
