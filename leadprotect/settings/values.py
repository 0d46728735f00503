"""Reads one value of section ``[leadprotect]``: text in, a checked value out, or the key named."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from leadprotect.errors import SettingsError
from leadprotect.settings.activities import is_expression
from leadprotect.settings.codes import territories_of
from leadprotect.settings.expressions import split

if TYPE_CHECKING:
    from collections.abc import Callable

_CHOICES = {
    "lead_id_type": ("uuid", "bigint", "integer", "text"),
    "user_id_type": ("uuid", "text", "bigint", "integer"),
    "host_rls": ("enforce", "force", "off"),
    "denied_edit": ("hide", "raise"),
    "owner_on_insert": ("none", "creator"),
}
# PostgreSQL cuts longer names without an error
_NAME_BYTES = 63
# how many of them stay free for what is added: "_territory_" and a code, Alembic's "_pkc"
_RESERVED_BYTES = {"schema": 27, "version_table": 4}
# Names are pasted into SQL, into literals of it and into format(): what would mean something there
# is refused. A colon is a bind parameter to SQLAlchemy, $x$ ends a quoted body.
_UNSAFE = re.compile(r"""['"\\%:{}\x00-\x1f\x7f\ud800-\udfff]|\$\w*\$""")
_CALLABLE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_FIELD = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_DURATION = re.compile(
    r"(\d+(?:\.\d+)?)\s*"
    r"(?:(?P<ms>ms|milliseconds?)|(?P<s>s|sec|seconds?)|(?P<min>m|min|minutes?)|(?P<h>h|hours?)|(?P<d>d|days?)|(?P<w>w|weeks?))?",
    re.ASCII | re.IGNORECASE,
)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_LEAD_TABLE = re.compile(r"([^(),]+)\(([^(),]+)\)\s*(append)?")
_SECONDS = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}


class LeadTable(NamedTuple):
    """A table of the host that holds data of leads; names are unquoted, as the catalog has them.

    `column` holds the id of the lead; `append` lets everybody of the lead's territory add rows.
    """

    table: str
    column: str
    append: bool = False

    def __str__(self) -> str:
        """As the setting has it."""
        return f"{self.table} ({self.column}){' append' if self.append else ''}"


def read(key: str, text: str) -> object:
    """The value of `key`; raises `SettingsError`, naming the key and never a password."""
    if key in _CHOICES:
        return _choice(key, text)
    if key.endswith("_guc"):
        return _guc(key, text)
    if key.endswith("_file"):
        return _file(key, text)
    if key in _READERS:
        return _READERS[key](text)
    return _table(key, text) if key.endswith("_table") and key != "version_table" else _name(key, text)


def source_name(name: str) -> str:
    """The name of a section ``[leadprotect.activities.NAME]``; else raises `SettingsError`."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,15}", name):
        raise SettingsError(
            f"[leadprotect.activities.{name}]: the name is not of 1 to 16 small letters, digits and underscores"
        )
    return name


def check_users(kind: str, users: tuple[str, ...]) -> None:
    """Raise `SettingsError` where an excluded user is none of the type of users."""
    for user in users:
        if kind == "uuid" and not _UUID.fullmatch(user):
            raise SettingsError(
                f"excluded_users: {user!r} is no uuid, which user_id_type says; write ids as the data has them"
            )
        if kind in {"bigint", "integer"} and not re.fullmatch(r"-?[0-9]{1,18}", user):
            raise SettingsError(
                f"excluded_users: {user!r} is no number, which user_id_type says; write ids as the data has them"
            )


def is_callable(text: str) -> bool:
    """Whether it is the import path of a function (``module:function``), not a URL."""
    return _CALLABLE.fullmatch(text) is not None


def duration(key: str, text: str, *, longest: str = "3650 days") -> float:
    """Seconds of ``250ms``, ``60s``, ``2min``, ``12 hours`` or ``7 days``; a number alone is seconds.

    Raises `SettingsError`, naming `key`, for any other text and for more than `longest`.
    """
    seconds = _seconds(text.strip())
    if seconds is None:
        raise SettingsError(f"{key}: {text!r} is not a duration; write 250ms, 60s, 2min, 12 hours or 7 days")
    if seconds > (_seconds(longest) or 0):
        raise SettingsError(f"{key}: {text!r} is longer than {longest}")
    return seconds


def _seconds(text: str) -> float | None:
    match = _DURATION.fullmatch(text)
    return float(match[1]) * _SECONDS[match.lastgroup or "s"] if match else None


def _database_url(text: str) -> str:
    return text if is_callable(text) else libpq_url("database_url", text)


def libpq_url(key: str, text: str) -> str:
    """The URL as libpq reads it; raises `SettingsError`, which names `key` and repeats nothing of the URL."""
    import psycopg.conninfo  # noqa: PLC0415 - a fifth of a second that a page of help need not spend

    url = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", text)
    try:
        parsed = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:  # libpq's own message repeats the URL, password included
        raise SettingsError(
            f"{key} is not a URL that libpq can read; expected postgresql://user@host:5432/name"
        ) from None
    # a password that is not percent-encoded is taken for a host or a port, and libpq would print it
    head = url.removeprefix("postgresql://").split("?")[0] if url.startswith("postgresql://") else ""
    before, at, _ = head.partition("@")
    host = str(parsed.get("host") or "").lstrip("@")  # a leading one names an abstract socket
    if "@" in host or head.count("@") > 1 or (at and "/" in before):
        raise SettingsError(
            f"{key}: its password holds a character that means something else in a URL; "
            "percent-encode it (@ is %40, / is %2F)"
        )
    if not re.fullmatch(r"[0-9,]*", str(parsed.get("port") or "")):
        raise SettingsError(f"{key}: its port is not a number; expected postgresql://user@host:5432/name")
    return url


def _audit_url(text: str) -> str:
    import psycopg.conninfo  # noqa: PLC0415

    url = libpq_url("audit_url", text)
    if {"user", "password", "service"} & set(psycopg.conninfo.conninfo_to_dict(url)):
        raise SettingsError("audit_url names a login; it says where only, since a denial is recorded by who was denied")
    return url


def _prometheus_url(text: str) -> str:
    if not text:
        return ""
    wrong = "prometheus_url is not the address of a Prometheus; expected https://host:9090 or https://host/prefix"
    try:
        parsed = urlsplit(text)
        found = parsed.scheme in {"http", "https"} and parsed.hostname and (parsed.port or 1)
    except ValueError:
        found = None
    if "@" in text:  # never repeated: it may be a password
        raise SettingsError("prometheus_url holds a login; name prometheus_user and prometheus_password_file instead")
    if not found or parsed.query or parsed.fragment or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise SettingsError(wrong)
    return text.rstrip("/")


def _file(key: str, text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise SettingsError(f"{key}: {text!r} is no path of a file; write one")
    return text


def _prometheus_user(text: str) -> str:
    if re.search(r"[:\x00-\x1f\x7f]", text):
        raise SettingsError(
            f"prometheus_user: {text!r} holds a colon or a control character, which basic auth can't carry; "
            "leave it out"
        )
    return text


def _prometheus_service(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", text):
        raise SettingsError(f"prometheus_service: {text!r} is not a name of letters, digits, dot, dash and underscore")
    return text


def _slo_p95(text: str) -> float:
    seconds = duration("slo_p95", text, longest="1 min")
    if not seconds:
        raise SettingsError("slo_p95: an answer takes longer than 0; write 150ms")
    return seconds


def _window(text: str) -> int:
    seconds = duration("observation_window", text)
    if not seconds.is_integer():
        raise SettingsError(f"observation_window: {text!r} is no whole number of seconds; write 7 days")
    return int(seconds)


def _list(key: str, text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise SettingsError(f"{key} is empty; write the values separated by commas")
    if len(set(parts)) < len(parts):
        raise SettingsError(f"{key} names a value twice, leave one out: {text}")
    return parts


def _territories(text: str) -> tuple[str, ...]:
    return tuple(code for code, _ in territories_of(text))


def _kinds(text: str) -> tuple[str, ...]:
    kinds = _list("qualifying_kinds", text)
    for kind in kinds:
        # a backslash means another thing under standard_conforming_strings = off
        if found := re.search(r"[\\\x00-\x1f\x7f\ud800-\udfff]|\$\w*\$", kind):
            raise SettingsError(
                f"qualifying_kinds: {kind!r} contains {found[0]!r}, which a revision can't hold; leave it out"
            )
    return kinds


def _users(text: str) -> tuple[str, ...]:
    users = _list("excluded_users", text) if text else ()
    for user in users:
        if found := re.search(r"[\\\x00-\x1f\x7f\ud800-\udfff]|\$\w*\$", user):
            raise SettingsError(
                f"excluded_users: {user!r} contains {found[0]!r}, which a revision can't hold; leave it out"
            )
    return users


def _owners_from(text: str) -> tuple[str, ...]:
    sources = _list("owners_from", text)
    if not set(sources) <= {"activities", "column"}:
        raise SettingsError(
            f"owners_from: {text!r} is not activities, column, or both in the order in which they answer"
        )
    return sources


def _owner_column(text: str) -> str:
    return _name("owner_column", text) if text else ""


def _kind_column(text: str) -> str:
    return _name("activity_kind_column", text) if text else ""


def _lead_of_activity(text: str) -> str:
    return _column_or_sql("activity_lead_id_column", text)


def _time_of_activity(text: str) -> str:
    return _column_or_sql("activity_at_column", text)


def _column_or_sql(key: str, text: str) -> str:
    if is_expression(text):
        return expression(key, text)
    try:
        return _name(key, text)
    except SettingsError as error:
        if "(" not in text:
            raise
        raise SettingsError(f"{error}; an expression stands in parentheses: {key} = ({text})") from None


def _base_table(text: str) -> str:
    return _table("activity_base_table", text) if text else ""


def _activity_condition(text: str) -> str:
    return expression("activity_condition", text) if text else ""


def expression(key: str, text: str) -> str:
    """SQL over one row of the host, as it will stand in our functions and in an index.

    Raises `SettingsError` for what is more than an expression; the catalog is asked by preflight.
    """
    outside = _QUOTED.sub(lambda found: "''" if found[0].startswith("'") else '""', text)
    for what, pattern in _NO_EXPRESSION.items():
        if found := re.search(pattern, outside if what != "what a revision can't hold" else text, re.IGNORECASE):
            raise SettingsError(f"{key}: {text!r} contains {what} ({found[0]!r}); write one condition over a row")
    depth = 0
    for sign in re.findall(r"[()\[\]]", outside):
        depth += 1 if sign in "([" else -1
        if depth < 0:
            break
    if depth or outside.count("'") % 2 or outside.count('"') % 2:
        raise SettingsError(f"{key}: {text!r} does not close what it opens")
    return text


def _exempt(text: str) -> tuple[str, ...]:
    roles = _list("exempt_roles", text) if text else ()
    for role in roles:
        _name("exempt_roles", role)
        # PostgreSQL takes them for PUBLIC and for no role at all, also when they are quoted
        if role in {"public", "none"} or role.startswith("pg_"):
            raise SettingsError(
                f"exempt_roles: {role!r} is not a login of yours; name logins that may keep their privileges"
            )
    return roles


def _lead_tables(text: str) -> tuple[LeadTable, ...]:
    found = []
    for part in re.split(r",(?![^(]*\))", text) if text else ():
        match = _LEAD_TABLE.fullmatch(part.strip())
        if not match:
            raise SettingsError(
                f"lead_tables: {part.strip()!r} is not a table and its column with the lead's id; "
                "write public.lead_contacts (lead_id), or public.activities (lead_id) append"
            )
        table, column = match[1].strip(), match[2].strip()
        found.append(LeadTable(_table("lead_tables", table), _name("lead_tables", column), append=bool(match[3])))
    for one in found:
        if [other.table for other in found].count(one.table) > 1:
            raise SettingsError(f"lead_tables names {one.table} twice; leave one out")
    return tuple(found)


def _choice(key: str, text: str) -> str:
    if text not in _CHOICES[key]:
        raise SettingsError(f"{key}: {text!r} is not one of {', '.join(_CHOICES[key])}")
    return text


def of_setting(text: str) -> tuple[str, str | None]:
    """The setting that a ``*_guc`` names, and the field of its JSON, if it is one."""
    name, _, field = (part.strip() for part in text.partition("->>"))
    return name, field or None


def _guc(key: str, text: str) -> str:
    if "->>" in text:
        name, field = of_setting(text)
        if key == "correlation_guc":
            raise SettingsError(
                f"{key}: {text!r} is a field of JSON; a correlation id has a setting of its own: name one"
            )
        if field is None or not _FIELD.fullmatch(field):
            raise SettingsError(f"{key}: {text!r} names no field; write request.jwt.claims ->> sub")
        return f"{_guc(key, name)} ->> {field}"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+", text) or len(text) > _NAME_BYTES:
        raise SettingsError(f"{key}: {text!r} is not a customised option name such as app.user_id")
    return text


def _table(key: str, text: str) -> str:
    schema, dot, name = text.partition(".")
    if not dot:
        raise SettingsError(f"{key}: {text!r} is not schema.table")
    return f"{_name(key, schema)}.{_name(key, name)}"


def _schema(text: str) -> str:
    if "." in text or "$" in text:
        raise SettingsError(f"schema: {text!r} contains a dot or a dollar sign; use letters, digits and _")
    if text.startswith("pg_") or text in {"information_schema", "public"}:
        raise SettingsError(f"schema: {text!r} is not leadprotect's alone; choose a name that nothing else uses")
    return _name("schema", text)


def _expression(text: str) -> str:
    if text:
        split("territory_expression", text)
    return text


def _name(key: str, text: str) -> str:
    if not text:
        raise SettingsError(f"{key} is empty; write a name")
    if found := _UNSAFE.search(text):
        raise SettingsError(
            f"{key}: {text!r} contains {found[0]!r}; a name may not hold quotes, backslash, percent, colon, "
            "braces or control characters"
        )
    longest = _NAME_BYTES - _RESERVED_BYTES.get(key, 0)
    if len(text.encode()) > longest:
        raise SettingsError(f"{key}: {text!r} is longer than {longest} bytes")
    return text


_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_NO_EXPRESSION = {
    "what a revision can't hold": r"[\\{}\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]|\$",
    "a second statement": r";",
    "a comment": r"--|/\*",
    "a subquery": r"\(\s*(?:select|with|values|table)\b",
}


_READERS: dict[str, Callable[[str], object]] = {
    "activity_at_column": _time_of_activity,
    "activity_base_table": _base_table,
    "activity_condition": _activity_condition,
    "activity_kind_column": _kind_column,
    "activity_lead_id_column": _lead_of_activity,
    "audit_url": _audit_url,
    "database_url": _database_url,
    "excluded_users": _users,
    "exempt_roles": _exempt,
    "lead_tables": _lead_tables,
    "observation_window": _window,
    "owner_column": _owner_column,
    "owners_from": _owners_from,
    "prometheus_service": _prometheus_service,
    "prometheus_url": _prometheus_url,
    "prometheus_user": _prometheus_user,
    "qualifying_kinds": _kinds,
    "schema": _schema,
    "slo_p95": _slo_p95,
    "territories": _territories,
    "territory_expression": _expression,
}
