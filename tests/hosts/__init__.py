"""Hosts that somebody else made: their SQL, their settings, their logins, and what a DBA grants them for contract."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadprotect.settings import Settings

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Person:
    """Somebody who works for one tenant of the host; `number` is `Database.user`'s."""

    name: str
    number: int
    org: int


ANNA = Person("anna", 1, 1)
BERT = Person("bert", 2, 1)
ZOE = Person("zoe", 3, 2)
PEOPLE = (ANNA, BERT, ZOE)


@dataclass(frozen=True)
class Shape:
    """What a host is, beside its SQL and ini file of the same name; roles are named without the host's prefix.

    `acting` are logins and the role that each sets, None for its own. `unbound` are acting roles that
    contract leaves as they are: named in exempt_roles, or the owner who is not forced. `grants` says which
    of our roles a DBA gives to whom, `remedies` what he changes about the host before contract.
    `inputs` are territories that another column than the first of the expression says.
    `org`, `account` and `child_lead` are columns, as SQL writes them.
    `grown_from` is the shape whose SQL comes before its own.
    `tenant` tells the host who asks; `fill` makes its tenants 1 and 2 with account 1 and 2.
    """

    name: str
    migrator: str
    acting: tuple[tuple[str, str | None], ...]
    grants: dict[str, tuple[str, ...]]
    tenant: Callable[[Settings, Person, str], dict[str, str]]
    fill: str
    children: tuple[str, ...]
    view: str
    unbound: frozenset[str] = frozenset()
    remedies: str = ""
    accounts: str = "public.accounts"
    row_security: bool = True
    inputs: tuple[tuple[str, str], ...] = ()
    org: str = "org_id"
    account: str = "account_id"
    child_lead: str = "lead_id"
    grown_from: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def script(self) -> str:
        return "".join((FOLDER / f"{name}.sql").read_text() for name in (self.grown_from, self.name) if name)

    @property
    def ini(self) -> Path:
        return FOLDER / f"{self.name}.ini"


def _org(_settings: Settings, person: Person, _user: str) -> dict[str, str]:
    return {"app.current_org": str(person.org)}


def _claims(_settings: Settings, _person: Person, user: str) -> dict[str, str]:
    return {"request.jwt.claims": json.dumps({"sub": user})}


def _nothing(_settings: Settings, _person: Person, _user: str) -> dict[str, str]:
    return {}


DJANGO = Shape(
    "django_force",
    migrator="django",
    acting=(("django", None), ("support", None), ("support", "readers"), ("bi", None), ("etl", None)),
    grants={"django": ("app", "de", "ch"), "support": ("app", "de")},
    unbound=frozenset({"bi", "etl"}),
    tenant=_org,
    fill="""
        INSERT INTO public.org VALUES (1, 'Alpha'), (2, 'Beta');
        INSERT INTO public.crm_account VALUES (1, 1, 'Muster AG'), (2, 2, 'Beispiel AG');
        """,
    children=("public.crm_contact", "public.crm_note"),
    view="public.crm_lead_list",
    accounts="public.crm_account",
)

SUPABASE = Shape(
    "supabase",
    migrator="dashboard",
    acting=(
        ("authenticator", None),
        ("authenticator", "anon"),
        ("authenticator", "authenticated"),
        ("authenticator", "authenticated_de"),
        ("authenticator", "authenticated_ch"),
        ("authenticator", "service_role"),
        ("backoffice", "service_role"),
        ("jobs", None),
        ("dashboard", None),
    ),
    grants={"authenticated_de": ("app", "de"), "authenticated_ch": ("app", "ch")},
    unbound=frozenset({"service_role", "jobs", "dashboard"}),
    tenant=_claims,
    fill="""
        INSERT INTO public.organizations VALUES (1, 'Alpha'), (2, 'Beta');
        INSERT INTO public.members
        VALUES (1, '{anna}', true), (1, '{bert}', false), (2, '{zoe}', true);
        INSERT INTO public.accounts VALUES (1, 1, 'Muster AG'), (2, 2, 'Beispiel AG');
        """,
    children=("public.contacts", "public.notes"),
    view="public.lead_list",
    # a service must not be able to become a role that row security does not bind
    remedies="""
        REVOKE "{h}service_role" FROM "{h}authenticator";
        REVOKE ALL ON public.leads, public.lead_list FROM "{h}anon";
        """,
)

FLYWAY = Shape(
    "flyway",
    migrator="crm",
    acting=(
        ("crm", None),
        ("portal_de", None),
        ("portal_ch", None),
        ("portal_de", "rw"),
        ("analyst", None),
        ("board", None),
    ),
    grants={"crm": ("app", "de", "ch"), "portal_de": ("app", "de"), "portal_ch": ("app", "ch")},
    unbound=frozenset({"analyst"}),
    tenant=_nothing,
    fill="""
        INSERT INTO sales.org VALUES (1, 'Alpha'), (2, 'Beta');
        INSERT INTO sales.account VALUES (1, 1, 'Muster AG'), (2, 2, 'Beispiel AG');
        """,
    children=("sales.lead_contact", "sales.lead_note"),
    view="sales.lead_list",
    accounts="sales.account",
    inputs=(("CH", "country_code"),),
    row_security=False,
)

PLAIN = Shape(
    "plain",
    migrator="owner",
    acting=(("svc_de", None), ("svc_ch", None), ("svc_both", None), ("outsider", None), ("owner", None)),
    grants={"svc_de": ("app", "de"), "svc_ch": ("app", "ch"), "svc_both": ("app", "de", "ch")},
    unbound=frozenset({"owner"}),
    tenant=_nothing,
    fill="""
        INSERT INTO public.org VALUES (1, 'Alpha'), (2, 'Beta');
        INSERT INTO public.accounts VALUES (1, 1, 'Muster AG'), (2, 2, 'Beispiel AG');
        """,
    children=("public.contacts", "public.notes"),
    view="public.lead_list",
    row_security=False,
)

PRISMA = Shape(
    "prisma",
    migrator="prisma",
    acting=(("prisma", None), ("web_de", None), ("web_ch", None), ("studio", None)),
    grants={"web_de": ("app", "de"), "web_ch": ("app", "ch")},
    unbound=frozenset({"prisma", "studio"}),
    tenant=_nothing,
    fill="""
        INSERT INTO public."Org" VALUES (1, 'Alpha'), (2, 'Beta');
        INSERT INTO public."User" VALUES ('{anna}'), ('{bert}'), ('{zoe}'), ('seller 9');
        INSERT INTO public."Account" VALUES (1, 1, 'Muster AG'), (2, 2, 'Beispiel AG');
        """,
    children=('public."LeadContact"', 'public."LeadNote"'),
    view='public."LeadList"',
    accounts='public."Account"',
    row_security=False,
    org='"orgId"',
    account='"accountId"',
    child_lead='"leadId"',
)

GROWN = replace(FLYWAY, name="flyway_grown", grown_from="flyway", tenant=_org, row_security=True)
"""Owners in a column and in three tables of activities of different types, and row security of its own."""

SHAPES = (DJANGO, SUPABASE, FLYWAY, PLAIN)
LIVES = (*SHAPES, PRISMA)
"""Those whose whole life is tried; what is known of the others from the border's matrix is the same for the last."""
ON_THE_OLDEST = (SUPABASE, FLYWAY, PRISMA)
"""Tried by day on the oldest server, too: a pool that sets roles, an application that owns its tables, lead_tables."""
