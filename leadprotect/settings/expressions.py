"""An SQL expression over a row of the host, for each alias that a revision gives that row."""

from __future__ import annotations

import re

from leadprotect.errors import SettingsError
from leadprotect.settings.quoting import literal

_TOKEN = re.compile(
    r"""(?P<text>'(?:[^'\\%{}]|'')*')
    |(?P<quoted>"(?:[^"\\%{}:$'])+")
    |(?P<cast>::\s*(?:character\ varying|double\ precision|[A-Za-z_]\w*(?:\.\w+)?)(?:\(\d+\))?)
    |(?P<number>\d+(?:\.\d+)?)
    |(?P<call>[^\W\d]\w*\.[^\W\d]\w*(?=\s*\())
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>\|\||<>|<=|>=|[-+*/<>=(),])
    |(?P<blank>\s+)""",
    re.VERBOSE,
)
_NO_SIGN = re.compile(r"([\\%{}$\x00-\x1f\x7f])")
# what stands in an expression without being a column; whatever else is reserved, the server refuses
_WORDS = {"and", "between", "case", "distinct", "else", "end", "false", "from", "in", "is", "like", "not", "null", "or"}
_WORDS |= {"then", "true", "when"}
_FORBIDDEN = {"select", "with", "values", "table", "over", "filter", "cast", "collate", "array", "row", "current_user"}


def split(key: str, expression: str) -> list[tuple[str, str]]:
    """The parts of the expression with their kinds: column, or as it stands. Raises `SettingsError`, naming `key`.

    Columns stand without a table; a name before a bracket is a function.
    """
    parts: list[tuple[str, str]] = []
    at = 0
    while at < len(expression):
        found = _TOKEN.match(expression, at)
        if found is None or expression.startswith(("--", "/*"), at):
            raise SettingsError(
                f"{key}: {expression[at : at + 12]!r} can't stand in it: write columns, texts and functions"
            )
        at = found.end()
        kind, text = str(found.lastgroup), found[0]
        called = kind in {"word", "quoted"} and expression[at:].lstrip().startswith("(")
        if kind == "word" and text.lower() in _FORBIDDEN:
            raise SettingsError(f"{key}: {text} can't stand in it: it is about one row, and casts are written with ::")
        if kind == "word" and text.lower() not in _WORDS and not called:
            parts.append(("column", text.lower()))
        elif kind == "quoted" and not called:
            parts.append(("column", text[1:-1]))
        else:
            parts.append((kind, text))
    if not columns(parts):
        raise SettingsError(f"{key}: {expression!r} names no column of the lead; name one")
    return parts


def constant(text: str) -> str:
    """A constant of an expression, with what can't stand in one by its number: ``'App' || chr(92) || 'Lead'``."""
    parts = re.split(_NO_SIGN, text)
    spelled = [f"chr({ord(part)})" if at % 2 else literal(part) for at, part in enumerate(parts) if part or text == ""]
    return " || ".join(spelled)


def columns(parts: list[tuple[str, str]]) -> list[str]:
    """The columns it reads, each once, unquoted."""
    return list(dict.fromkeys(text for kind, text in parts if kind == "column"))


def of_row(parts: list[tuple[str, str]], alias: str) -> str:
    """The expression over the row that is called `alias`; '' names the row of a policy or an index."""
    return "".join(f'{alias}"{text}"' if kind == "column" else text for kind, text in parts)
