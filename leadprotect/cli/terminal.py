"""What a terminal shows: text as it stands, whatever it holds. What a lead is called is no instruction to it."""

from __future__ import annotations

import re

import click

# control characters; then what turns the direction of a line, ends it, or takes no room: bounded() has them, too
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def plain(text: str) -> str:
    """`text` without control characters but the end of a line, and without what is not seen: it reads as it is."""
    return _CONTROL.sub(" ", text)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line, plain."""
    click.echo(plain(text), err=err)
