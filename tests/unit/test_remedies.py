"""Each error says what it is about and what to do; what is to be run is run as it stands."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import click
import pglast
import pytest

from leadprotect.cli import main
from leadprotect.cli.terminal import pasted, remedy_lines
from tests.support.commands import members
from tests.support.database import ROOT
from tests.support.messages import Message, messages

if TYPE_CHECKING:
    from collections.abc import Iterator

RAISED = list(messages())

WORDS = (
    "add|answer|apply|ask|asking|before|begin|belongs|call|choose|connect|convert|correct|deny|does|drop|end|except"
    "|expected|export|fill|first|free|generate|give|go|goes|install|instead|keep|known|leave|let|look|make|makes|move"
    "|must|name|need|needed|needs|only|pass|percent-encode|put|raise|remove|rename|restore|return|roll|run|save|say"
    "|see|set|show|shows|start|stop|take|try|use|wait|write"
)
"""Words that tell somebody what to do, or what is needed."""

TELLS = re.compile(
    rf"\b({WORDS}|one of|such as)\b|leadprotect [a-z]|alembic [a-z]|psql |pip |GRANT |postgresql:|DATABASE_URL|--[a-z]",
    re.IGNORECASE,
)
FORM = re.compile(
    r"\bis (not|no) |, not |longer than|keys are|there (are|is)|the heads are|one chain has|(is|are) written |above 0"
    r"|none of|has \{\.\.\.\}"
)
"""What says which value would be right, or how far it may go."""

PASSED_ON = re.compile(r"[:.,] \{\.\.\.\}[^a-z]*$|\{\.\.\.\}(\. Nothing was touched)?$")
"""What ends with another finished answer: its remedy is the other's."""


def test_there_are_as_many_as_were_found_by_hand() -> None:
    """Reading the source must not silently find nothing."""
    assert len(RAISED) > 250


@pytest.mark.parametrize("error", RAISED, ids=[f"{number}-{one.kind}" for number, one in enumerate(RAISED)])
def test_every_error_names_its_thing_and_what_to_do(error: Message) -> None:
    said = error.text
    helps = any(pattern.search(said) for pattern in (TELLS, FORM, PASSED_ON))
    assert helps, (
        f"{error}\nsay what to do about it, after a semicolon: '...; write 150ms', '...: leadprotect backfill DE'"
    )
    named = PASSED_ON.search(said) or len(said.split()) > 2
    assert named, f"{error}\nname the thing: the option, the setting, the table"


def commands_in(text: str) -> Iterator[str]:
    """What a text says to run, as a terminal shows it: on lines of their own."""
    for line in text.replace("{...}", "X").splitlines():
        yield from (step for step in remedy_lines(line) if pasted(step))


TO_RUN = sorted({(step, one.place) for one in RAISED for step in commands_in(one.text)})


def hints() -> Iterator[tuple[str, str]]:
    """What the database's own errors and conditions say to run: hints of LP codes, remedies of the gate."""
    for file in sorted((ROOT / "migrations/versions").glob("lp_*.py")):
        for found in re.finditer(r"(?:HINT\s*=|remedy :=|THEN)\s*(?:format\()?'((?:[^']|'')+)'", file.read_text()):
            text = re.sub(r"%(\d\$)?[IsL]", "X", found[1].replace("''", "'"))
            yield from ((step, file.name) for step in commands_in(text))


HINTED = sorted(set(hints()))


def test_commands_and_statements_are_found() -> None:
    assert {"leadprotect", "alembic"} <= {step.split()[0] for step, _ in TO_RUN}
    assert {"ALTER", "UPDATE"} <= {step.split()[0] for step, _ in HINTED}


@pytest.mark.parametrize(("step", "place"), [*TO_RUN, *HINTED], ids=str)
def test_what_is_to_be_run_is_understood_as_it_stands(step: str, place: str) -> None:
    words = step.split()
    if words[0] == "leadprotect":
        resolve(shlex.split(step)[1:])
    elif words[0].isupper():
        pglast.parse_sql(step.rstrip(";"))
    else:
        assert words[0] in {"alembic", "psql", "pip", "make", "createdb"}, place


def resolve(words: list[str]) -> None:
    """Find the command and its options, as click does; what is said in capitals stands for something of the user's."""
    command: click.Command = main
    while isinstance(command, click.Group) and words:
        while words[0] in {name for parameter in command.params for name in parameter.opts}:
            words = words[2:]  # an option of the group, and its value: leadprotect --on DE status
        known = members(command)
        if words[0] == "X" and command is main:
            return  # the command that the user gave
        if words[0] not in known and "run" in known:
            command = known["run"]
            break
        assert words[0] in known, f"there is no command {words[0]}: {sorted(known)}"
        command = known[words[0]]
        words = words[1:]
    options = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    given = {word.partition("=")[0] for word in words[: words.index("--") if "--" in words else None] if word[0] == "-"}
    assert given - {"-"} <= options
