"""Nothing of a template is left in a revision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from leadprotect.authoring.finding import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.authoring.chain import RevisionChain, RevisionFile

_NUMBER = re.compile(r"(?<![A-Za-z0-9])V?X{3,}(?![A-Za-z])|(?<![A-Za-z0-9])V?N{4}(?![A-Za-z])")
_LEFT = re.compile(rf"{_NUMBER.pattern}|\b(?:TODO|FIXME|TBD|CHANGEME)\b|<[A-Z][A-Z_ ]+>|\$\{{\w+\}}")
_QUESTIONS = ("Why:", "Locks on host tables:", "Undone by:")


def placeholders(chain: RevisionChain) -> Iterator[Problem]:
    """``VXXX`` sorts after every number and runs when nobody expects it; a missing answer is asked for at night."""
    for one in chain.revisions:
        if found := _NUMBER.search(one.file.stem):
            yield Problem("placeholders", one.file, one.line("revision"),
                          f"{found[0]} stands in its name for a number", _NUMBERED)  # fmt: skip
        for number, text in enumerate(one.source.splitlines(), start=1):
            if found := _LEFT.search(text):
                inside = number in (one.line("revision"), one.line("down_revision"))
                yield Problem("placeholders", one.file, number, f"{found[0]} was left from a template",
                              _NUMBERED if inside else "write what it stands for")  # fmt: skip
    for one in chain.numbered:
        yield from _unanswered(one)


_NUMBERED = "write the number that leadprotect next prints, in the id and in the file's name"


def _unanswered(one: RevisionFile) -> Iterator[Problem]:
    for question in _QUESTIONS:
        answer = one.doc.partition(f"\n{question}")[2].strip()
        if f"\n{question}" not in one.doc:
            yield Problem("placeholders", one.file, 1, f"its docstring does not answer {question!r}",
                          "begin a paragraph with it, and answer")  # fmt: skip
        elif not answer or answer.startswith(("...", *_QUESTIONS)):
            yield Problem("placeholders", one.file, one.line_of(question), f"{question!r} is not answered",
                          "answer it in a sentence: who rolls back at night reads it")  # fmt: skip
