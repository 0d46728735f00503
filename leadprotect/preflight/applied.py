"""Settings that contract wrote into the database, beside those of today."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from leadprotect.database.statements import rows
from leadprotect.settings import LeadTable
from leadprotect.settings.names import AT_CONTRACT

if TYPE_CHECKING:
    from leadprotect.database.drivers import AnyConnection
    from leadprotect.settings import Settings

# the catalog shows a function's text to everybody, whether he may call it or not
_TEXT = """
    SELECT p.prosrc FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname = %s AND p.proname = 'settings_at_contract' AND p.pronargs = 0
    """
_RETURNED = re.compile(r"RETURN '((?:[^']|'')*)'")


@dataclass(frozen=True)
class Difference:
    """A setting that the database holds otherwise than the settings of today say."""

    key: str
    database: Any
    setting: Any

    def __str__(self) -> str:
        """One readable line."""
        return f"{self.key} {self.what}"

    @property
    def what(self) -> str:
        """The same without its key."""
        return f"is {_shown(self.database)} in the database, and {_shown(self.setting)} in the settings"


def made_with(conn: AnyConnection, s: Settings) -> Settings | None:
    """The settings `s` with what contract was made with in their place; None before contract."""
    found = rows(conn, _TEXT, (s.schema,))
    said = _RETURNED.search(found[0][0]) if found else None
    if said is None:
        return None
    try:
        held = json.loads(said[1].replace("''", "'"))
        given = {key: _as_setting(held[key]) for key in AT_CONTRACT if key in held}
        given["lead_tables"] = tuple(LeadTable(*one) for one in given.get("lead_tables", ()))
    except (ValueError, TypeError):
        return None
    return replace(s, **given)


def differences(conn: AnyConnection, s: Settings) -> list[Difference]:
    """What `leadprotect apply` would change; empty before contract."""
    made = made_with(conn, s)
    if made is None:
        return []
    pairs = [(key, getattr(made, key), getattr(s, key)) for key in AT_CONTRACT]
    return [Difference(*pair) for pair in pairs if _compared(pair[1]) != _compared(pair[2])]


def _as_setting(value: Any) -> Any:
    """JSON has lists where a setting has a tuple."""
    return tuple(_as_setting(one) for one in value) if isinstance(value, list) else value


def _compared(value: Any) -> Any:
    """A list of a setting says the same in any order."""
    return sorted(map(str, value)) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return (", ".join(map(str, value)) or "empty") if isinstance(value, tuple) else str(value)
