"""``leadprotect next``."""

from __future__ import annotations

import click

from leadprotect.authoring.chain import read_chain
from leadprotect.authoring.writing import next_number
from leadprotect.cli import output


@click.command("next")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the number.")
def next_command(*, as_json: bool) -> None:
    """Print the number of the next revision.

    Exit code 1 where the chain is not clean: two heads, a gap, a number taken twice, a placeholder left.
    """
    chain = read_chain()
    number = next_number(chain)
    if as_json:
        head = chain.head.id if chain.head else None
        click.echo(output.as_json({"number": number, "prefix": chain.prefix, "head": head, "folder": chain.folder}))
    else:
        click.echo(f"{number:04}")
