"""The command line as click sees it: a command's module is loaded when the command is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator


def members(group: click.Group) -> dict[str, click.Command]:
    """Every command of a group, by name."""
    asked = click.Context(group)
    found = {name: group.get_command(asked, name) for name in group.list_commands(asked)}
    return {name: command for name, command in found.items() if command is not None}


def leaves(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, by its words: groups ask for one of theirs."""
    if isinstance(group, click.Group):
        for name, command in members(group).items():
            yield from leaves(command, (*path, name))
    else:
        yield path, group
