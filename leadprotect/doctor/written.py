"""Writes an expression of the settings as the server does when it shows what it keeps.

The server keeps a parsed form, and prints that: a list is an array, a CASE has its ELSE, an operator has one name
(https://www.postgresql.org/docs/current/functions-info.html, pg_get_expr). What can stand in an expression says
`settings.expressions`; brackets and casts are taken off both sides by `likeness`.
"""

from __future__ import annotations

import re

_SQL = "and case coalesce distinct else end from greatest is least like not null nullif or then when between in"
_KEYWORDS = frozenset(_SQL.split())
_OPENS, _CLOSES = frozenset(("(", "CASE")), frozenset((")", "END"))
_BETWEEN_OPERANDS = frozenset(("AND", "OR", "NOT", "WHEN", "THEN", "ELSE", ","))
_NUMBER = re.compile(r"E?'(-?)(\d+(?:\.\d+)?)'")


def as_written(parts: list[str]) -> list[str]:
    """The parts of an expression, as `likeness` takes a text apart, as the server prints them."""
    found: list[str] = []
    for part in parts:
        found.append(_word(part, found))
    for rule in (_case, _list, _between, _same, _like, _trim):
        found = rule(found)
    return found


def numbers_bare(text: str) -> str:
    """Numbers without the quotes that the server sets around a negative or a large one."""
    return _NUMBER.sub(lambda found: f"{found[1]} {found[2]}".strip(), text)


def _word(part: str, before: list[str]) -> str:
    """Keywords in capitals, what IS asks for too; names that are not quoted in small letters."""
    if not re.match(r"[^\W\d]", part):
        return part
    asked = part.lower() in {"true", "false"} and (before[-1:] == ["IS"] or before[-2:] == ["IS", "NOT"])
    return part.upper() if asked or part.lower() in _KEYWORDS else part.lower()


def _depths(parts: list[str]) -> list[int]:
    """How deep each part stands in brackets; a CASE is one up to its END."""
    found, depth = [], 0
    for part in parts:
        depth -= part in _CLOSES
        found.append(depth)
        depth += part in _OPENS
    return found


def _closing(parts: list[str], at: int) -> int:
    """Where the bracket is closed that opens at `at`."""
    depths = _depths(parts)
    return next(place for place in range(at + 1, len(parts)) if depths[place] == depths[at] and parts[place] in _CLOSES)


def _operand_before(parts: list[str], at: int) -> int:
    """Where the operand begins that ends before `at`."""
    depths = _depths(parts)
    bounds = (place for place in range(at - 1, -1, -1) if _bounds(parts, depths, place, depths[at - 1]))
    return next(bounds, -1) + 1


def _operand_after(parts: list[str], at: int) -> int:
    """Where the operand ends that begins at `at`."""
    depths = _depths(parts)
    bounds = (place for place in range(at, len(parts)) if _bounds(parts, depths, place, depths[at]))
    return next(bounds, len(parts))


def _bounds(parts: list[str], depths: list[int], place: int, depth: int) -> bool:
    """Whether no operand of that depth goes on over this part."""
    outside = depths[place] < depth
    return outside or (depths[place] == depth and parts[place] in _BETWEEN_OPERANDS)


def _case(parts: list[str]) -> list[str]:
    """A CASE says what it is otherwise."""
    found: list[str] = []
    otherwise: list[bool] = []
    for part in parts:
        if part == "CASE":
            otherwise.append(False)
        elif part == "ELSE":
            otherwise[-1] = True
        elif part == "END" and not otherwise.pop():
            found += ["ELSE", "NULL"]
        found.append(part)
    return found


def _list(parts: list[str]) -> list[str]:
    """A list of more than one is an array; what names a column in it is compared one by one."""
    while "IN" in parts:
        at = parts.index("IN")
        end, denied = _closing(parts, at + 1), parts[at - 1] == "NOT"
        begin = _operand_before(parts, at - denied)
        entries = _entries(parts[at + 2 : end])
        named = [entry for entry in entries if any(part.startswith('"') for part in entry)]
        plain = [part for entry in entries if entry not in named for part in (",", *entry)][1:]
        several = ["ALL" if denied else "ANY", "ARRAY", "[", *plain, "]"] if "," in plain else plain
        said: list[str] = []
        for one in [several, *named] if several else named:
            said += [*(["AND" if denied else "OR"] if said else []), *parts[begin : at - denied]]
            said += ["<>" if denied else "=", *one]
        parts = [*parts[:begin], *said, *parts[end + 1 :]]
    return parts


def _entries(parts: list[str]) -> list[list[str]]:
    """What stands between the commas of a list."""
    found: list[list[str]] = [[]]
    for part, depth in zip(parts, _depths(parts), strict=True):
        if part == "," and depth == 0:
            found.append([])
        else:
            found[-1].append(part)
    return found


def _between(parts: list[str]) -> list[str]:
    """Two comparisons, of which each names the operand."""
    while "BETWEEN" in parts:
        at = parts.index("BETWEEN")
        denied = parts[at - 1] == "NOT"
        begin, middle = _operand_before(parts, at - denied), _operand_after(parts, at + 1)
        end = _operand_after(parts, middle + 1)
        one, low, high = parts[begin : at - denied], parts[at + 1 : middle], parts[middle + 1 : end]
        said = [*one, "<", *low, "OR", *one, ">", *high] if denied else [*one, ">=", *low, "AND", *one, "<=", *high]
        parts = [*parts[:begin], *said, *parts[end:]]
    return parts


def _same(parts: list[str]) -> list[str]:
    """Not to be distinct is denied as a whole."""
    for at in range(len(parts) - 1, -1, -1):
        if parts[at : at + 3] == ["IS", "NOT", "DISTINCT"]:
            begin = _operand_before(parts, at)
            parts = [*parts[:begin], "NOT", *parts[begin:at], "IS", *parts[at + 2 :]]
    return parts


def _like(parts: list[str]) -> list[str]:
    """The operator behind the word."""
    found: list[str] = []
    for part in parts:
        denied = part == "LIKE" and found[-1:] == ["NOT"]
        found[len(found) - denied :] = [("!~~" if denied else "~~") if part == "LIKE" else part]
    return found


def _trim(parts: list[str]) -> list[str]:
    """What SQL writes with words is written so, whichever way it was called."""
    found, depths = [], _depths(parts)
    for place, part in enumerate(parts):
        found.append("TRIM" if part == "trim" else part)
        if found[-2:] == ["TRIM", "("]:
            inside = range(place + 1, _closing(parts, place))
            alone = all(parts[one] != "," or depths[one] > depths[place] + 1 for one in inside)
            found += ["BOTH", "FROM"] if alone else []
    return found
