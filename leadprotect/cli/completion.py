"""``leadprotect completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print what lets a shell complete commands, options, territories and revisions.

    bash: eval "$(leadprotect completion bash)"; fish: leadprotect completion fish | source
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"{shell} is no shell that can be served; use bash, zsh or fish")
    click.echo(kind(ctx.find_root().command, {}, "leadprotect", "_LEADPROTECT_COMPLETE").source())
