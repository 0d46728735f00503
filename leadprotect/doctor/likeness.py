"""Puts what the server deparses into a form that is the same on every version and with any settings.

Names of the settings become those of the default settings, casts go (a column of another type needs others),
and so do the parentheses that stand around a casted operand only. What is left is compared part by part. It
cannot see: another bracket where the territory is an expression, another cast, one host column of the settings
in place of another that bears the same name as a default, one qualifying kind in place of another.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from leadprotect.doctor.written import as_written, numbers_bare
from leadprotect.settings import KEYS, LeadTable, Settings, ident, literal
from leadprotect.settings.codes import OFFICES
from leadprotect.settings.names import names
from leadprotect.settings.values import of_setting

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEFAULTS = Settings()
_CHILD = LeadTable("public.lead_contacts", "lead_id")
_OWNER_COLUMN = "seller"  # of the hosts that shipped.json was taken from
_TYPE = r'(?:timestamp with(?:out)? time zone|character varying|double precision|"(?:[^"]|"")+"|\w+)'
_TOKEN = re.compile(
    r"E?'(?:[^']|'')*'"
    rf'|::\s*(?:(?:"(?:[^"]|"")+"|\w+)\.)?{_TYPE}(?:\(\d+(?:,\s*\d+)?\))?(?:\[\])*'
    r'|"(?:[^"]|"")*"|\w+|[-+*/<>=~!@#%^&|`?]+|\S'
)
_WORD = re.compile(r'"(?:[^"]|"")*"|\w+')
_KIND = "'{kind}'"
_ELSEWHERE = " of another database"


def neutral(text: str, s: Settings, child: LeadTable | None = None) -> str:
    """`text`, an expression or a body as the server has it, with the default names; parts parted by blanks.

    Names of the table `child`, which holds data of leads, become those of one that is called like `_CHILD`.
    """
    return _neutral(text, _of_any_database(s), child)


@lru_cache(maxsize=16)
def _of_any_database(s: Settings) -> Settings:
    """The settings without what no text depends on: of databases of one kind each text is read once."""
    return replace(s, database_url="")


@lru_cache(maxsize=4096)  # four kinds of hosts: one has some 500 texts
def _neutral(text: str, s: Settings, child: LeadTable | None) -> str:
    known = _names(s, child)
    for claimed, plain in _claims(s):
        text = claimed.sub(plain, text)
    parts = [_renamed(part, known, s) for part in _TOKEN.findall(text)]
    found = " ".join(_lists(_uncast(parts), s))
    return _of_column(found, s) if s.territory_expression else found


def _of_column(text: str, s: Settings) -> str:
    """The same with a column where the territory's expression stands: the server sets brackets in it as it likes."""
    plain = _bare(text)
    for expression, column in _expressions(s):
        called = '(?: AS (?:"nullif"|nullif|territory)(?= |$))?'  # a column of the same name needs none
        plain = re.sub(re.escape(expression) + called, column, plain)
    return plain


def _bare(text: str) -> str:
    """Without brackets, and without the quotes that a name or a number gets where the server sees a need."""
    bare = " ".join(part for part in text.split(" ") if part not in {"(", ")"})
    return numbers_bare(re.sub(r'"([a-z_][a-z0-9_]*)"', r"\1", bare))


@lru_cache(maxsize=4)
def _expressions(s: Settings) -> list[tuple[str, str]]:
    """How the server writes the expression for each alias of the row -> the column of the default settings there."""
    made, known = names(s), _names(s)
    found = []
    for row, alias in {"l": "l . ", "old": "old . ", "new": "new . ", "here": ""}.items():
        parts = [_renamed(part, known, s) for part in _TOKEN.findall(made[f"territory_of_{row}"])]
        text = _bare(" ".join(as_written(_uncast(parts))))
        found.append((text.replace("pg_catalog . ", ""), f"{alias}{_DEFAULTS.territory_column}"))
    return found


def neutral_name(name: str, s: Settings) -> str:
    """The same for one name."""
    return _names(s).get(name, name)


def neutral_role(role: str, s: Settings) -> str:
    """The same for a role of the cluster: one that bears a default name and is not ours stays somebody else."""
    ours = _neutral_roles(s)
    return ours.get(role) or (f"{role}{_ELSEWHERE}" if role in ours.values() else role)


def real_role(role: str, s: Settings) -> str:
    """The role that `neutral_role` gave this name."""
    ours = {neutral: name for name, neutral in _neutral_roles(s).items()}
    return ours.get(role) or role.removesuffix(_ELSEWHERE)


@lru_cache(maxsize=4)
def _neutral_roles(s: Settings) -> dict[str, str]:
    return {s.role(office): neutral_name(s.role(office), s) for office in OFFICES}


@lru_cache(maxsize=4)
def _claims(s: Settings) -> list[tuple[re.Pattern[str], str]]:
    """What reads and writes a field of a setting that holds JSON -> the same of the default setting."""
    found = []
    for key in ("user_guc", "territory_guc"):
        name, field = of_setting(getattr(s, key))
        if field is not None:
            text, ours = "(?:::text)?", rf'(?:"?{re.escape(s.schema)}"?\.)?'
            now = rf"(?:pg_catalog\.)?current_setting\({re.escape(literal(name))}{text}, true\)"
            given, plain = re.escape(literal(field)) + text, literal(getattr(_DEFAULTS, key))
            written = rf"{re.escape(literal(name))}{text}, {ours}claiming\({now}, {given}, (\w+(?:\.\w+)?)\)"
            read, setting = rf"{ours}claimed\({now}, {given}\)", f"current_setting({plain}::text, true)"
            found += [
                (re.compile(written), rf"{plain}::text, COALESCE(\1, ''::text)"),
                (re.compile(f"{read} AS claimed"), f"{setting} AS current_setting"),
                (re.compile(read), setting),
            ]
    return found


@lru_cache(maxsize=32)
def _names(s: Settings, child: LeadTable | None = None) -> dict[str, str]:
    """Name -> what stands for it: names that one setting gives to two things, or another thing has, are one."""
    pairs = [(getattr(s, key), getattr(_DEFAULTS, key)) for key in KEYS if key.endswith(("_column", "_guc", "_type"))]
    for key in ("leads_table", "activities_table"):  # further tables of activities bear names of the host in no text
        pairs += zip(getattr(s, key).split(".", 1), getattr(_DEFAULTS, key).split(".", 1), strict=True)
    pairs = [pair for pair in pairs if all(pair)]  # no column where the territory is an expression
    pairs += [(s.owner_column, _OWNER_COLUMN)] if s.owner_column else []
    pairs += [(s.role(office), _DEFAULTS.role(office)) for office in ("", *OFFICES)]
    pairs += [(s.schema, _DEFAULTS.schema), (s.quarantine, _DEFAULTS.quarantine)]
    if child:
        pairs += [
            *zip(child.table.split(".", 1), _CHILD.table.split(".", 1), strict=True),
            (child.column, _CHILD.column),
        ]
    found: dict[str, str] = {}
    for one, other in pairs:
        kept, gone = sorted((found.get(one, one), found.get(other, other)), key=_plainness)
        found |= {one: kept, other: kept} | {name: kept for name, of in found.items() if of == gone}
    return found


def _plainness(name: str) -> tuple[bool, str]:
    """What needs no quotes stands for the others, so that a neutral text is the same when it is read again."""
    return re.fullmatch(r"[A-Za-z_]\w*", name) is None, name


def _renamed(part: str, names: dict[str, str], s: Settings) -> str:
    if part.startswith('"'):
        name = part[1:-1].replace('""', '"')
        return names.get(name, ident(name))
    if not part.startswith(("'", "E'")):
        return names.get(part, part)
    said = part[part.index("'") + 1 : -1]
    if said.replace("''", "'") in (*s.qualifying_kinds, *_DEFAULTS.qualifying_kinds, _KIND[1:-1]):
        return _KIND
    return f"'{names[said] if said in names else _WORD.sub(lambda word: _renamed(word[0], names, s), said)}'"


def _uncast(parts: list[str]) -> list[str]:
    """Without casts, and without the parentheses that the server puts around what is cast."""
    kept: list[str | None] = []
    opened: list[int] = []
    closed: list[int] = []  # where the parentheses begin that end the text so far, the outermost last
    for part in parts:
        if part.startswith("::"):
            if closed:
                kept[closed.pop()] = None
                kept.pop()
            continue
        if part == "(":
            opened.append(len(kept))
        closed = [*closed, opened.pop()] if part == ")" and opened else []
        kept.append(part)
    return [part for part in kept if part is not None]


def _lists(parts: list[str], s: Settings) -> Iterator[str]:
    """Lists of the settings as one entry; a column without the name that it has already."""
    exempt = {f"'{role}'" for role in s.exempt_roles}
    found: list[str] = []
    for part in parts:
        again = part in exempt or (part == _KIND and found[-2:-1] == [_KIND])
        if (found[-1:] == [","] and again) or found[-2:] == [part, "AS"]:
            found.pop()
        else:
            found.append(part)
    text = " ".join(found)
    return iter(text.replace(f"= ANY ( ARRAY [ {_KIND} ] )", f"= {_KIND}").split(" "))
