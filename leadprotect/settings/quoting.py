"""Names and values as SQL: the one place that quotes them."""

from __future__ import annotations


def ident(*names: str) -> str:
    """Quote a name for SQL; several are joined by dots. The one helper for identifiers."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def table(name: str) -> str:
    """Quote a table setting such as ``public.leads``."""
    return ident(*name.split(".", 1))


def literal(text: str) -> str:
    """Quote a value as a standard SQL string constant, for DDL that takes no parameters."""
    return "'" + text.replace("'", "''") + "'"
