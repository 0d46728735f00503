"""Writes docs/reference/options.md: every command with its usage, its help and its options (`make options`)."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import click

from leadprotect.cli import main
from tests.support.commands import members
from tests.support.database import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = ROOT / "docs/reference/options.md"
INTRODUCTION = """\
# Options of every command

Made by `make options` from the commands themselves: what `--help` says. What each is for, and how they belong together,
tells [the command line](cli.md).
"""


def commands(group: click.Group, above: str = "leadprotect") -> Iterator[tuple[str, click.Command]]:
    """Each command with the words that call it, a group before its own."""
    for name, command in members(group).items():
        yield f"{above} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{above} {name}")


def page() -> str:
    """The page, from the commands themselves."""
    lines = [INTRODUCTION]
    for name, command in commands(main):
        context = click.Context(command, info_name=name)
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        lines += [f"## {name}", "", f"`{usage}`", "", said(command.help or command.short_help or ""), ""]
        options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
        if options:
            lines += ["| option | what it says |", "|---|---|"]
            lines += [f"| `{called(one, context)}` | {cell(one, context)} |" for one in options]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def said(text: str) -> str:
    """A help text as paragraphs, where angle brackets and stars are themselves."""
    return inspect.cleandoc(text).replace("\b\n", "").replace("<", "&lt;").replace("*", "\\*")


def called(option: click.Option, context: click.Context) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {option.make_metavar(context)}".replace("|", "\\|")


def cell(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    return said(record[1] if record else "").replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
