"""Codes of territories: any text that leads carry, and the suffix of a role's name for each."""

from __future__ import annotations

import re

from leadprotect.errors import SettingsError

OFFICES = ("app", "auditor", "manager", "operator", "owner", "reader")

BACKUP = "backup"
"""The login that dumps a database whole: no office, since row security does not bind it."""

LONGEST = 63
"""Characters of a code."""

_SUFFIX = re.compile(r"[a-z0-9][a-z0-9_]{0,15}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# a code in double quotes, in which they are doubled, or one without; then perhaps a colon and the suffix
_ENTRY = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",:][^,:]*?))\s*(?::\s*([^,":]*?)\s*)?(?:,|$)')


def suffix_of(code: str, given: str | None = None) -> str:
    """What the name of the territory's role ends with; a plain word says it itself, in small letters.

    Raises `SettingsError` for a text that is no code, and where the suffix is missing or no plain word.
    """
    if found := _CONTROL.search(code):
        raise SettingsError(f"territories: {code!r} contains {found[0]!r}, which no code holds; leave it out")
    if not code or len(code) > LONGEST:
        raise SettingsError(f"territories: {code!r} is not a code of 1 to {LONGEST} characters")
    suffix = code.lower() if given is None else given
    if not _SUFFIX.fullmatch(suffix):
        wanted = "1 to 16 small letters, digits and underscores"
        if given is None:
            raise SettingsError(
                f"territories: {code!r} is not a code of 1 to 16 letters, digits and underscores, so it can't end the "
                f"name of its role; name it with a suffix of {wanted}: {as_setting(code, 'suffix')}"
            )
        raise SettingsError(f"territories: {given!r}, the suffix of {code!r}, is not of {wanted}")
    taken = (*OFFICES, BACKUP)
    if {suffix, code.lower()} & {*taken}:
        raise SettingsError(f"territories: {code!r} would collide with the role of that name ({', '.join(taken)})")
    return suffix


def as_setting(code: str, suffix: str) -> str:
    """A territory as the setting has it."""
    quoted = '"' + code.replace('"', '""') + '"' if re.search(r'^\s|\s$|[",:]', code) else code
    return code if suffix == code.lower() else f"{quoted}: {suffix}"


def territories_of(text: str) -> tuple[tuple[str, str], ...]:
    """The codes of the setting with their suffixes; raises `SettingsError` for what is none, or stands twice."""
    found: list[tuple[str, str]] = []
    rest = text.strip().rstrip(",")
    while rest.strip():
        match = _ENTRY.match(rest)
        if not match:
            raise SettingsError(
                f"territories: {rest.strip()!r} can't be read; a code that holds a comma, a colon or a quote is "
                'written in double quotes: "Zurich, city": zh'
            )
        quoted, plain, given = match.groups()
        code = plain.strip() if quoted is None else quoted.replace('""', '"')
        found.append((code, suffix_of(code, given)))
        rest = rest[match.end() :]
    if not found:
        raise SettingsError("territories is empty; write the values separated by commas")
    codes, suffixes = zip(*found, strict=True)
    if len(set(codes)) < len(codes):
        raise SettingsError(f"territories names a value twice: {text}")
    if len(set(suffixes)) < len(suffixes):
        raise SettingsError(
            f"territories: two codes would share a role, as those do that differ only in case: {text}; "
            "give one of them another suffix"
        )
    return tuple(found)


def code_literal(code: str) -> str:
    """A code as an SQL string constant that means the same in any body, format or script, whatever it holds."""
    if re.fullmatch(r"[A-Za-z0-9_ -]*", code):
        return f"'{code}'"
    return "E'" + "".join(sign if re.fullmatch(r"[A-Za-z0-9_ -]", sign) else _escaped(sign) for sign in code) + "'"


def _escaped(sign: str) -> str:
    return f"\\u{ord(sign):04x}" if ord(sign) < 1 << 16 else f"\\U{ord(sign):08x}"
