"""How people call the tables and columns that the settings name: the patterns, the most telling first."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from leadprotect.adoption.survey import HostColumn, HostTable

TYPES = {
    "uuid": "uuid", "bigint": "bigint", "integer": "integer", "text": "text", "character varying": "text",
}  # fmt: skip
TEXTS = ("text", "character varying")
TIMES = ("timestamp with time zone", "timestamp without time zone", "date")

LEADS = (
    r"leads?", r".*_leads?", r"leads?_.*", r"opportunit(y|ies)|.*_opportunit(y|ies)", r"prospects?|.*_prospects?",
    r"deals?|.*_deals?",
)  # fmt: skip
CUSTOMERS = (r"contacts?|.*_contacts?", r"customers?|clients?|kunden?|accounts?|compan(y|ies)|partners?|inquir(y|ies)")
"""What may hold the leads where no table is called like leads: never taken without being asked."""
ASIDE = r"history|log|audit|tag|source|status|stage|score|import|view|type|contact|note|file|activit|event"
TERRITORIES = (
    r"territor(y|ies)(_code)?", r".*territor(y|ies).*",
    r"(market|region|gebiet|land|country)(_code|_id|_key)?|.*_(region|market|country)(_code)?",
)  # fmt: skip
PLACES = (
    r".*territor(y|ies)", r".*(market|region)s?|.*(country|countries)|gebiete?|laender",
    r".*(province|district|canton|zone|branch|office|area|state|bundesland|site)(s|es)?(_ids?)?",
)  # fmt: skip
"""Tables of places that a lead may refer to, each a territory."""
CODES = (
    r"(iso|country|region|territory|market)?_?code",
    r"iso\d?|slug|key|abbrev(iation)?|short(_name|_description)?",
    r"name",
)
ACTIVITIES = (
    r".*activit(y|ies).*", r".*(interaction|engagement|touch(es|point)?s?).*",
    r".*(event|call|task|visit|contact|log|histor).*",
)  # fmt: skip
USERS = (
    r"user_id|seller|seller_id|agent|agent_id|actor|actor_id|principal",
    r"(created|performed|done|made)_by(_id|_user_id)?",
    r"(owner|author|sales(man|person)?|employee|rep|staff|member|profile)(_user)?(_id)?", r".*user.*",
)  # fmt: skip
KINDS = (r"kind|type|verb|what|action", r".*(kind|type|verb|action|channel|category).*")
MOMENTS = (
    r"(happened|occurred|performed|done|completed|activity|event)(_at|_on|_date|_time)?",
    r"(created|entered|recorded|logged|inserted)(_at|_on|_date)?|date|at|timestamp", r".*(_at|_date|_on|_time)",
)  # fmt: skip
OWNERS = (
    r"(owner|assigned_to|assignee|seller|sales|agent|salesperson|responsible)(_user)?(_id)?",
    r".*(owner|assigned|assignee).*",
    r"(sales_?(man|rep|representative|executive)|rep|employee|account_?manager|verkaeufer)(_user)?(_id)?", r"user_id",
)  # fmt: skip
QUALIFY = re.compile(
    r"call|meet|visit|besuch|anruf|demo|present|reaction|reply|antwort|sample|follow|termin|appointment", re.IGNORECASE
)


def rank(name: str, patterns: tuple[str, ...]) -> int:
    """Which pattern a name is like: the first one tells most; as many as there are for none."""
    spelled = snake(name)
    return next((place for place, one in enumerate(patterns) if re.fullmatch(one, spelled)), len(patterns))


def snake(name: str) -> str:
    """The name as the patterns spell it, also where some tool calls it createdAt."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def like(one: HostTable, patterns: tuple[str, ...], fits: Callable[[HostColumn], bool]) -> list[str]:
    """The columns with a name like one of the patterns, the likeliest first."""
    named = sorted((rank(column.name, patterns), column.name) for column in one.columns.values() if fits(column))
    return [name for place, name in named if place < len(patterns)]


def one_of(leads: HostTable) -> str:
    """What one row of the table is called."""
    return re.sub(r"ies$", "y", re.sub(r"(?<!s)s$", "", leads.plain))


def first_of(one: HostTable, patterns: tuple[str, ...], fits: Callable[[HostColumn], bool]) -> str | None:
    """The likeliest of them."""
    return next(iter(like(one, patterns, fits)), None)


def says_of_what(name: str) -> list[str]:
    """The columns that may say what an id is of: subject_type of subject_id, res_model or model of res_id."""
    begin = re.fullmatch(r"(.*?)(_?)(id|Id)", name)
    if begin is None or not begin[1]:
        return []
    words = ("type", "model", "class", "table")
    after = [word.capitalize() if begin[3] == "Id" else word for word in words]
    alone = ["model"] if begin[1] in {"res", "object", "record", "entity"} else []
    return [*(f"{begin[1]}{begin[2]}{word}" for word in after), *alone]


def names_people(table: str | None, keys: Iterable[str] = ()) -> bool:
    """Whether a foreign key leads to users, by the name of their table or of its keys; or nothing says where to."""
    return (
        table is None
        or re.search(r"user|profile|staff|sales|seller|employee|member|people|person|agent", snake(table)) is not None
        or any(rank(key, USERS) == 0 for key in keys)
    )


def is_aside(one: HostTable) -> bool:
    """Whether a table is about leads rather than of them: its name says more than that."""
    return rank(one.plain, LEADS) > 0 and re.search(ASIDE, snake(one.plain)) is not None


def is_activities(one: HostTable) -> bool:
    """Whether it is called like what people did; an audit trail is what was written down about them."""
    return rank(one.plain, ACTIVITIES) < len(ACTIVITIES) and "audit" not in snake(one.plain)


def is_text(column: HostColumn) -> bool:
    """Whether it holds words: a text, or an enum."""
    return column.is_enum or column.type in (*TEXTS, "character")


def is_id(column: HostColumn) -> bool:
    """Whether it may hold an id that we know."""
    return column.type in TYPES
