"""What the demo tells, scene by scene; every number and every answer comes from its server."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import leadprotect
from leadprotect.errors import LeadAccessDenied
from leadprotect.lab.sheet import Sheet

if TYPE_CHECKING:
    from leadprotect.lab.demo.server import Demo

SELECT = "SELECT left(id::text, 8) AS lead, company, city, territory\nFROM leads ORDER BY id LIMIT 4"
UPDATE = "UPDATE leads SET city = upper(city) WHERE id = %s"
CODE = "bold cyan"


@dataclass(frozen=True)
class Person:
    """Somebody in the story: a user of the service, and the login of the service that speaks for him."""

    user: UUID
    name: str
    territory: str

    @property
    def login(self) -> str:
        """Each territory has a service of its own."""
        return f"seller_{self.territory.lower()}"


@dataclass(frozen=True)
class Cast:
    """A lead, and three people who would like to edit it."""

    lead: UUID
    label: str
    owner: Person
    colleague: Person
    neighbour: Person

    @property
    def people(self) -> tuple[Person, Person, Person]:
        """All three."""
        return self.owner, self.colleague, self.neighbour


def introduce(demo: Demo, started: float, loaded: float) -> None:
    """What was loaded, and that everybody may see and change it."""
    version = demo.sql("SHOW server_version")[0][0]
    leads, activities = demo.sql("SELECT (SELECT count(*) FROM leads), (SELECT count(*) FROM activities)")[0]
    chapter(demo, "A sales organisation's database")
    say(
        demo,
        f"PostgreSQL {version} is running (ready after {started:.1f} s) and holds {leads:,} leads with "
        f"{activities:,} activities (loaded in {loaded:.1f} s). The sellers of Germany and Switzerland, each "
        "with a login of their own, share the table. Nothing protects it yet:",
    )
    visible(demo, ("seller_de", ""), ("seller_ch", ""))


def tell(demo: Demo) -> None:
    """Migrate, and show what is different afterwards."""
    migrate(demo)
    cast = choose(demo)
    two_logins(demo, cast)
    who_may_edit(demo, cast)
    denied_attempt(demo, cast)
    rollback_and_back(demo)


def migrate(demo: Demo) -> None:
    """Expand, backfill, contract: the commands of a real deployment."""
    chapter(demo, "1. The migration adds all it may, and stops before anybody is locked out")
    demo.run("alembic", "upgrade", "head")
    chapter(demo, "2. What the gate asked for: owners, and roles for the logins")
    demo.run("leadprotect", "backfill", "DE", "CH")
    for grant in (
        "GRANT leadprotect_app, leadprotect_de TO seller_de",
        "GRANT leadprotect_app, leadprotect_ch TO seller_ch",
        "GRANT leadprotect_auditor, leadprotect_de, leadprotect_ch TO auditor",
    ):
        demo.sql(grant)
        demo.console.print(f"{grant};", style=CODE)
    chapter(demo, "3. The same command again: the gate is open, the database enforces")
    say(demo, "(In production it also waits for the observation window, 7 days by default; here it is 0.)")
    demo.run("alembic", "upgrade", "head")


def two_logins(demo: Demo, cast: Cast) -> None:
    """The same SELECT, two logins, two results."""
    chapter(demo, "4. The same SELECT, two logins, two results")
    demo.console.print(f"{SELECT};\n", style=CODE, markup=False)
    for person in (cast.owner, cast.neighbour):
        with demo.connect(person.login) as conn, leadprotect.acting_as(conn, person.user, person.territory):
            cursor = conn.execute(SELECT)
            seen = Sheet(tuple(column.name for column in cursor.description or ()))
            for row in cursor:
                seen.add(*(value or "-" for value in row))
        say(demo, f"as {person.login}, for {person.name}:")
        demo.show(seen)
    here, there = cast.owner.territory, cast.neighbour.territory
    say(demo, "Of all leads a login sees, by the territory that it sets as its context:")
    visible(demo, (cast.owner.login, here), (cast.neighbour.login, there), (cast.owner.login, there))
    say(
        demo,
        "The border is the login; a setting can only narrow it. Leads without a territory are outside "
        "protection: visible and editable as before.",
    )


def who_may_edit(demo: Demo, cast: Cast) -> None:
    """One decision with its reason, for three people."""
    chapter(demo, f"5. Who may edit {cast.label}, and why?")
    demo.console.print("leadprotect.explain(conn, lead)", style=CODE)
    answers = Sheet(("user", "login", "may edit", "reason"))
    for person in cast.people:
        with demo.connect(person.login) as conn, leadprotect.acting_as(conn, person.user, person.territory):
            decision = leadprotect.explain(conn, cast.lead)
        answers.add(person.name, person.login, "yes" if decision.allowed else "no", decision.reason)
    demo.show(answers)
    say(demo, f"For {cast.neighbour.name} the lead looks like one that does not exist.")


def denied_attempt(demo: Demo, cast: Cast) -> None:
    """A denial that outlives its transaction, and an edit that nobody announced."""
    chapter(demo, f"6. {cast.colleague.name} tries all the same")
    demo.console.print("leadprotect.assert_edit(conn, lead)", style=CODE)
    with demo.connect(cast.colleague.login) as conn:
        try:
            with leadprotect.acting_as(conn, cast.colleague.user, cast.colleague.territory):
                leadprotect.assert_edit(conn, cast.lead)
        except LeadAccessDenied as denied:
            demo.console.print(f"LeadAccessDenied: {denied}", style="yellow", markup=False)
        conn.rollback()
    say(demo, "The transaction is rolled back. Now without asking, as plain SQL:")
    demo.console.print(UPDATE.replace("%s", "lead;"), style=CODE)
    for person in (cast.colleague, cast.owner):
        with demo.connect(person.login) as conn, leadprotect.acting_as(conn, person.user, person.territory):
            changed = conn.execute(UPDATE, (cast.lead,)).rowcount
        say(demo, f"{person.name}: {changed} row{'' if changed == 1 else 's'} changed")
    say(demo, "\nWhat the audit knows about the lead, the attempt that was rolled back included:")
    demo.show(audit(demo, cast))


def rollback_and_back(demo: Demo) -> None:
    """All the way down and up again, with every row."""
    chapter(demo, "7. Rollback, all the way down and back, without losing a row")
    before = rows_kept(demo, "leadprotect")
    demo.run("alembic", "downgrade", "base", brief=True)
    quarantine = rows_kept(demo, "leadprotect_quarantine")
    demo.run("alembic", "upgrade", "head", brief=True)
    after = rows_kept(demo, "leadprotect")
    moments = ("before", "in quarantine", "after")
    kept = Sheet(("rows", *moments), numbers=moments)
    for name in before:
        kept.add(name, *(f"{counted[name]:,}" for counted in (before, quarantine, after)))
    demo.show(kept)
    if not before == quarantine == after:
        message = "the rollback lost rows, see above; run it again with --keep and look at them"
        raise leadprotect.LeadProtectError(message)


def say_what_next(demo: Demo, seconds: float, *, keep: bool) -> None:
    """How long it took, and what to try next."""
    running = " The server goes on." if keep else ""
    chapter(demo, f"Done in {seconds:.0f} s.{running} What to try next:")
    hints: tuple[str, ...]
    if keep:
        # the file is the last that a server takes away
        ended = f"while [ -e {demo.server.folder}/data/postmaster.pid ]; do sleep 1; done"
        hints = (
            f"cd {demo.server.folder}",
            f"export DATABASE_URL='{demo.url()}'",
            *(f"unset {name}" for name in demo.hidden),
            f"export PATH={Path(sys.executable).parent}:{demo.server.programs}:$PATH",
            "alembic history; alembic downgrade -1; alembic upgrade head",
            "leadprotect --help",
            f"psql $DATABASE_URL    # or as a seller: psql '{demo.url('seller_de')}'",
            f"kill -INT {demo.server.pid} && {ended} && rm -r {demo.server.folder}    # ends it",
        )
    else:
        mine = "leadprotect" if shutil.which("leadprotect") else Path(sys.argv[0])
        hints = (
            f"{mine} demo --keep        # leaves the server running",
            f"{mine} demo --scale 10    # ten times the leads",
            f"{mine} demo --leads FILE.csv --activities FILE.csv",
            "DATABASE_URL=postgresql://... alembic upgrade head",
        )
    for hint in hints:
        demo.console.print(f"  {hint}", soft_wrap=True, markup=False)


# --- what the scenes are made of


def choose(demo: Demo) -> Cast:
    """A lead with an owner and his colleague, where there are such; people are made up where not."""
    lead, territory, label, owner = demo.sql(
        "SELECT l.id, l.territory, concat_ws(', ', coalesce(l.company, left(l.id::text, 8)), l.city), a.user_id "
        "FROM leads AS l LEFT JOIN leadprotect.user_lead_assignments AS a "
        "  ON a.lead_id = l.id AND a.territory = l.territory "
        "WHERE l.territory IS NOT NULL ORDER BY a.user_id IS NULL, l.territory DESC, l.id LIMIT 1"
    )[0]
    other = "CH" if territory == "DE" else "DE"
    return Cast(
        lead=lead,
        label=label,
        owner=person(demo, owner or UUID(int=1), territory),
        colleague=person(demo, an_owner(demo, territory, owner) or UUID(int=2), territory),
        neighbour=person(demo, an_owner(demo, other, owner) or UUID(int=3), other),
    )


def an_owner(demo: Demo, territory: str, but: UUID | None) -> UUID | None:
    """Somebody else who owns leads in the territory."""
    found = demo.sql(
        "SELECT user_id FROM leadprotect.user_lead_assignments "
        "WHERE territory = %s AND user_id IS DISTINCT FROM %s ORDER BY user_id LIMIT 1",
        *(territory, but),
    )
    return found[0][0] if found else None


def person(demo: Demo, user: UUID, territory: str) -> Person:
    """Somebody by his name, where the data has it."""
    names = demo.sql("SELECT name FROM users WHERE id = %s", user)
    return Person(user, names[0][0] if names else f"user {str(user)[-8:]}", territory)


def visible(demo: Demo, *viewers: tuple[str, str]) -> None:
    """How many leads of each territory a login sees with a territory as its context."""
    numbers = ("leads of DE", "leads of CH", "without territory")
    counts = Sheet(("login", "context", *numbers), numbers=numbers)
    for login, context in viewers:
        with demo.connect(login) as conn:
            conn.execute("SELECT set_config('app.territory', %s, true)", (context,))
            seen = conn.execute(
                "SELECT count(*) FILTER (WHERE territory = 'DE'), count(*) FILTER (WHERE territory = 'CH'), "
                "count(*) FILTER (WHERE territory IS NULL) FROM leads"
            ).fetchone()
        counts.add(login, context or "none", *(f"{number:,}" for number in seen or ()))
    demo.show(counts)


def audit(demo: Demo, cast: Cast) -> Sheet:
    """The lead's rows of the audit, as its auditor reads them."""
    found = Sheet(("time (UTC)", "login", "user", "action", "outcome", "reason"))
    with demo.connect("auditor") as conn:
        conn.execute("SELECT set_config('app.territory', %s, true)", (cast.owner.territory,))
        for user, login, time, *facts in conn.execute(
            "SELECT user_id, login, to_char(at AT TIME ZONE 'Etc/UTC', 'HH24:MI:SS'), action::text, "
            "outcome::text, reason FROM leadprotect.lead_access_audit WHERE lead_id = %s ORDER BY at",
            (cast.lead,),
        ):
            name = next((somebody.name for somebody in cast.people if somebody.user == user), str(user))
            found.add(time, login, name, *facts)
    return found


def rows_kept(demo: Demo, schema: str) -> dict[str, int]:
    """How many rows each table of ours holds that a rollback must not lose."""
    names = ("user_lead_assignments", "lead_access_audit")
    return {name: demo.sql(f"SELECT count(*) FROM {schema}.{name}")[0][0] for name in names}


def chapter(demo: Demo, title: str) -> None:
    """A heading."""
    demo.console.print(f"\n{title}", style="bold", markup=False)


def say(demo: Demo, text: str) -> None:
    """A paragraph."""
    demo.console.print(text, markup=False)
