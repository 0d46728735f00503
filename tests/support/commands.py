"""The command line as click sees it: a command's module is loaded when the command is asked for."""

from __future__ import annotations

import click


def members(group: click.Group) -> dict[str, click.Command]:
    """Every command of a group, by name."""
    asked = click.Context(group)
    found = {name: group.get_command(asked, name) for name in group.list_commands(asked)}
    return {name: command for name, command in found.items() if command is not None}
