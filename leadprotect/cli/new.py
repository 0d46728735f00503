"""``leadprotect new``."""

from __future__ import annotations

import click

from leadprotect.authoring.reports import seen_from_here
from leadprotect.authoring.writing import Made, Moved, new_revision, rebase
from leadprotect.cli import output
from leadprotect.cli.terminal import echo
from leadprotect.phases import ORDER


@click.command("new")
@click.argument("message", required=False)
@click.option("--phase", type=click.Choice(ORDER), help="expand adds, migrate fills, contract enforces and drops.")
@click.option("--name", metavar="WORDS", help="Subject in the id, as add_at.  [default: the message's first words]")
@click.option("--prefix", metavar="LETTERS", help="What the ids begin with, where the chain has none yet.")
@click.option(
    "--rebase",
    "rebased",
    is_flag=False,
    flag_value="",
    metavar="[HEAD]",
    help="Put the newer of two branches behind the other instead, or the one with this head.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def new_command(
    message: str | None, *, phase: str | None, name: str | None, prefix: str | None, rebased: str | None, as_json: bool
) -> None:
    """Write the next revision from a template, or put a branch behind another.

    Its number is the next one, it follows the present head, and its text asks why, which locks, and how it is
    undone. The chain is that of alembic.ini. Exit code 1 where it is not clean.
    """
    if rebased is not None:
        if message or phase or name or prefix:
            raise click.UsageError("--rebase makes no revision: leave out the message, --phase, --name and --prefix")
        _say_moved(rebase(rebased or None), as_json=as_json)
        return
    if message is None:
        raise click.UsageError('say what the revision does: leadprotect new "add AT" --phase expand')
    if phase is None:
        raise click.UsageError(f"--phase is missing: one of {', '.join(ORDER)}")
    _say_made(new_revision(message, phase=phase, name=name, prefix=prefix), as_json=as_json)


def _say_made(made: Made, *, as_json: bool) -> None:
    if as_json:
        click.echo(output.as_json(made))
        return
    echo(seen_from_here(made.file))
    echo(f"follows {made.below or 'nothing: it is the first'}; fill it in, then run: leadprotect validate")


def _say_moved(moved: tuple[Moved, ...], *, as_json: bool) -> None:
    if as_json:
        click.echo(output.as_json({"moved": moved}))
        return
    for one in moved:
        echo(f"{one.before} is {one.after} now, and follows {one.below}")
    echo("write the old name nowhere else: tests and pages may have it")
