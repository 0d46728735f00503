"""``leadprotect owner`` and ``leadprotect rules``: the same functions, from a shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from leadprotect import can_edit, settings
from leadprotect.cli import main

if TYPE_CHECKING:
    from tests.support.database import Database


@pytest.fixture
def shell(database: Database, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command as a login of the database, in DE and as user 9 unless it reads."""

    def run(
        command: str,
        *more: Any,
        login: str = "manager_de",
        stdin: str | None = None,
        code: int = 0,
        territory: str = "DE",
    ) -> Result:
        monkeypatch.setenv("DATABASE_URL", database.login_url(login))
        settings.current.cache_clear()
        words = [*command.split(), *map(str, more), "--territory", territory]
        reads = {"show", "list"} & set(words)
        done = CliRunner().invoke(
            main, words if reads or "--as" in words else [*words, "--as", database.user(9)], input=stdin
        )
        assert code == done.exit_code, done.output
        return done

    return run


def owned(database: Database, count: int, owner: int = 1) -> list[Any]:
    return [database.lead("DE", owner=database.user(owner)) for _ in range(count)]


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(
    ("written", "code", "said"),
    [
        (b"\xef\xbb\xbf{0}\r\n{0}\r\n{1}\r\n", 0, "2 leads of DE now belong to"),  # as a spreadsheet writes it
        (b"{0}\n{2}\n", 0, "1 lead of DE now belongs to"),  # the same in capitals
        (b"# both\n{0}\nnonsense\n", 1, "leads.txt, line 3: lead_id: 'nonsense' is not of type uuid"),
        (b"\n# nobody\n", 2, "leads.txt names no lead"),
        (b"\xff\xfe{0}", 2, "leads.txt can't be read: it is no text in UTF-8"),
    ],
)
def test_a_file_of_leads_is_read_as_people_write_it_or_refused_by_its_line(
    database: Database, shell: Any, tmp_path: Path, written: bytes, code: int, said: str
) -> None:
    first, second = (str(lead).encode() for lead in owned(database, 2))
    for place, lead in ((b"{0}", first), (b"{1}", second), (b"{2}", first.upper())):
        written = written.replace(place, lead)
    (file := tmp_path / "leads.txt").write_bytes(written)
    output = shell("owner assign", "--file", file, "--to", database.user(2), code=code).output
    assert said in " ".join(output.split())
    assert (code == 0) == (database.user(2) in [database.owner(lead.decode()) for lead in (first, second)])


def test_leads_of_arguments_and_of_a_file_are_assigned_in_one_transaction(
    database: Database, shell: Any, tmp_path: Path
) -> None:
    leads = owned(database, 3)
    file = tmp_path / "leads.txt"
    file.write_text(f"# of the fair\n{leads[1]}\n\n  {leads[2]}\n{leads[0]}\n", encoding="utf-8")
    done = shell("owner assign", leads[0], "--file", file, "--to", database.user(2), "--note", "fair")
    assert f"3 leads of DE now belong to {database.user(2)}\n" == done.stdout
    assert [database.user(2)] * 3 == [database.owner(lead) for lead in leads]
    said = f"fair; assign to {database.user(2)}"
    assert [(database.user(9), "manager", said)] * 3 == database.audit("user_id::text, reason, note")


def test_a_dry_run_shows_what_would_be_and_leaves_it(database: Database, shell: Any) -> None:
    leads = owned(database, 2)
    for command in ("owner assign", "owner transfer"):
        done = shell(command, *leads, "--to", database.user(2), "--dry-run", "--slice", 1)
        assert f"dry run, rolled back: 2 leads of DE now belong to {database.user(2)}\n" == done.stdout
    shell("owner release", leads[0], "--dry-run")
    shell("owner transfer", "--all-of", database.user(1), "--to", database.user(2), "--dry-run", "--slice", 1)
    shell("rules suspend", database.user(1), "--dry-run")
    assert [database.user(1)] * 2 == [database.owner(lead) for lead in leads]
    assert ([], [0]) == (database.audit(), database.sql("SELECT count(*) FROM {schema}.lead_protection_rules"))


def test_slices_that_were_committed_stay_where_a_later_one_fails(database: Database, shell: Any) -> None:
    leads = [*owned(database, 3), database.lead("CH")]
    done = shell("owner transfer", *leads, "--to", database.user(2), "--slice", 2, code=1)
    assert "access to 1 of 2 leads denied" in done.stderr
    assert "2 leads were done before, and stay so" in done.stderr
    assert [database.user(2)] * 2 + [database.user(1)] == [database.owner(lead) for lead in leads[:3]]


def test_without_slices_one_denied_lead_keeps_all_as_they_were(database: Database, shell: Any) -> None:
    leads = [*owned(database, 2), database.lead("CH")]
    done = shell("owner release", *leads, code=1)
    assert f"Error: access to 1 of 3 leads denied: {leads[2]} (not_found), which is recorded" in done.stderr
    assert [database.user(1)] * 2 == [database.owner(lead) for lead in leads[:2]]


def test_all_leads_of_a_seller_are_handed_over_in_slices(database: Database, shell: Any) -> None:
    leads = owned(database, 5)
    done = shell("owner transfer --all-of", database.user(1), "--to", database.user(2), "--slice", 2)
    assert f"5 leads of DE now belong to {database.user(2)}\n" == done.stdout
    assert [database.user(2)] * 5 == [database.owner(lead) for lead in leads]
    again = shell("owner transfer --all-of", database.user(1), "--to", database.user(2))
    assert f"0 leads of DE now belong to {database.user(2)}\n" == again.stdout


def test_ids_come_from_the_standard_input(database: Database, shell: Any) -> None:
    leads = owned(database, 2)
    done = shell("owner release --file -", stdin="\n".join(map(str, leads)))
    assert "2 leads of DE now belong to nobody\n" == done.stdout
    assert [None, None] == [database.owner(lead) for lead in leads]


def test_who_owns_leads_and_who_may_edit_them_besides_is_shown(database: Database, shell: Any) -> None:
    mine, free, swiss = database.lead("DE", owner=database.user(1)), database.lead("DE"), database.lead("CH")
    shell("rules grant", database.user(2), "COLLABORATOR", "--lead", mine)
    told = json.loads(shell("owner show --json", mine, free, swiss, code=1).stdout)
    assert [
        (str(mine), True, database.user(1), "assign", [database.user(2)]),
        (str(free), True, None, None, []),
        (str(swiss), False, None, None, []),
    ] == [(str(one["lead_id"]), one["here"], one["owner"], one["source"], one["shared_with"]) for one in told]
    first, owner, since, shared = shell("owner show", mine).stdout.splitlines()
    assert [str(mine), f"  owner {database.user(1)}", f"  shared with {database.user(2)}"] == [first, owner, shared]
    assert since.endswith(" UTC, assign")
    assert f"{free}\n  owner nobody\n" == shell("owner show", free).stdout
    assert f"{swiss}\n  no lead of DE\n" == shell("owner show", swiss, code=1).stdout


def test_a_rule_is_granted_listed_and_revoked(database: Database, shell: Any) -> None:
    user = database.user(2)
    shell("rules grant", user, "COLLABORATOR", "--until", "2099-01-01T00:00Z", "--note", "holiday")
    (rule,) = json.loads(shell("rules list --json").stdout)
    assert (user, "COLLABORATOR", None, "2099-01-01T00:00:00Z") == (
        rule["user_id"], rule["protection"], rule["lead_id"], rule["effective_to"],
    )  # fmt: skip
    said, when = shell("rules list --user", user).stdout.splitlines()
    assert f"COLLABORATOR of {user} in DE" == said
    assert when.endswith(f" until 2099-01-01 00:00 UTC, made by {database.profile.login('manager_de')}")
    assert f"1 rule COLLABORATOR of {user} ended in DE\n" == shell("rules revoke", user, "COLLABORATOR").stdout
    assert f"0 rules COLLABORATOR of {user} ended in DE\n" == shell("rules revoke", user, "COLLABORATOR").stdout
    assert "no rule in DE\n" == shell("rules list").stdout
    assert "ended" in shell("rules list --ended").stdout


def test_an_owner_shares_his_lead_and_ends_that(database: Database, shell: Any) -> None:
    lead, (owner, other, third) = owned(database, 1)[0], map(database.user, (1, 2, 3))
    mine = {"login": "seller_de"}
    done = shell("rules share", lead, other, "--until", "2099-01-01T00:00Z", "--as", owner, **mine)
    assert f"lead {lead} of DE is shared with {other} until 2099-01-01 00:00+00:00\n" == done.stdout
    with database.acting("seller_de", 2) as conn:
        assert can_edit(conn, lead)
    said = shell("rules share", lead, third, "--as", other, code=1, **mine).stderr  # who shares it owns it, or manages
    assert "not_owner, which is recorded; only its owner or a manager may" in said
    assert f"lead {lead} of DE is shared with {other} no more\n" == shell("rules unshare", lead, other).stdout
    with database.acting("seller_de", 2) as conn:
        assert not can_edit(conn, lead)


def test_a_suspension_says_until_when(database: Database, shell: Any) -> None:
    lead = owned(database, 1)[0]
    done = shell("rules suspend", database.user(1), "--until", "2099-01-01T00:00+01:00")
    assert f"{database.user(1)} is suspended in DE until 2099-01-01 00:00+01:00\n" == done.stdout
    assert [database.user(1)] == [database.owner(lead)]


@pytest.mark.parametrize("command", ["owner assign {lead} --to {user}", "rules suspend {user}"])
def test_who_may_not_is_told_what_helps(database: Database, shell: Any, command: str) -> None:
    text = command.format(lead=owned(database, 1)[0], user=database.user(2).replace(" ", "_"))
    said = shell(text, login="seller_de", code=1).stderr
    manager, login = database.settings.role("manager"), database.profile.login("seller_de")
    assert f'only a manager of DE may. A DBA can run: GRANT "{manager}" TO "{login}"' in said
    assert [("DENY", "not_manager")] == database.audit("outcome::text, reason")


@pytest.mark.parametrize("command", ["owner transfer --all-of {user} --to {other}", "rules list", "owner show {lead}"])
def test_a_territory_that_the_login_does_not_hold_is_no_empty_one(database: Database, shell: Any, command: str) -> None:
    lead = owned(database, 1)[0]
    users = {"user": database.user(1).replace(" ", "_"), "other": database.user(2).replace(" ", "_")}
    text = command.format(lead=lead, **users)
    said = shell(text, login="seller_ch", code=1).stderr
    here, login = database.settings.role("de"), database.profile.login("seller_ch")
    assert f'the login does not hold DE. A DBA can run: GRANT "{here}" TO "{login}"' in said
    assert "there is no 'XX'; known are CH, DE" in shell(text, territory="XX", code=1).stderr
    assert [] == database.audit()


def test_what_a_seller_may_not_look_up_is_named_with_what_helps(database: Database, shell: Any) -> None:
    role = database.settings.role("manager")
    for command in (("rules list",), ("owner show", database.lead("DE"))):
        said = shell(*command, login="seller_de", code=1).stderr
        assert f'this is for managers and auditors. A DBA can run: GRANT "{role}" TO' in said


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("owner release", 2, "name a lead"),
        ("owner release nonsense", 1, "lead_id: 'nonsense'"),
        ("owner release --file nowhere", 2, "--file: nowhere can't be read"),
        ("owner transfer x --all-of u --to v", 2, "--all-of names the leads itself"),
        ("rules suspend u --until tomorrow", 2, "'--until': 'tomorrow' is not a time such as"),
        ("rules suspend u --until 2099-01-01", 2, "needs a time zone"),
        ("rules suspend u --as nobody", 2, "--as: user_id: 'nobody' is not of type uuid"),
        ("rules grant u OWNER", 2, "'OWNER' is not one of"),
    ],
)
def test_a_mistake_is_named(shell: Any, command: str, code: int, said: str) -> None:
    assert said in shell(command, code=code).stderr
