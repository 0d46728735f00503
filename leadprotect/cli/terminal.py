"""What a terminal shows: text as it stands, whatever it holds. What a lead is called is no instruction to it."""

from __future__ import annotations

import re

import click

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """`text` without control characters but the end of a line: none moves the cursor or writes a title."""
    return _CONTROL.sub(" ", text)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line, plain."""
    click.echo(plain(text), err=err)
