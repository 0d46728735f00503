"""``leadprotect audit`` as operators and auditors run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from leadprotect import settings
from leadprotect.cli import main
from tests.support.auditing import raised_denial, record, seal, tamper
from tests.support.database import Database

Run = Callable[..., Result]

pytestmark = pytest.mark.profiles("pg18", "other_names")


@pytest.fixture
def run(database: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command as one of LOGINS."""

    def audit(login: str, *arguments: str) -> Result:
        monkeypatch.setenv("DATABASE_URL", database.login_url(login))
        settings.current.cache_clear()
        return CliRunner().invoke(main, ["audit", *arguments])

    return audit


def test_the_coming_months_are_made(run: Run) -> None:
    assert "2 new partitions\n" == run("operator", "partitions", "--ahead", "5").output
    assert "every partition is there already\n" == run("operator", "partitions", "--ahead", "5").output


def test_sealing_prints_what_is_to_be_kept(run: Run, database: Database) -> None:
    record(database)
    lines = run("operator", "seal").output.splitlines()
    heads = database.sql(
        "SELECT coalesce(territory, 'rows without territory') || ': ' || row_count || ' rows sealed; seal 1 is ' "
        "|| encode(hash, 'hex') FROM {schema}.lead_access_audit_seals ORDER BY territory NULLS FIRST"
    )
    assert heads == lines


def test_an_intact_audit_is_exit_code_0(run: Run, database: Database) -> None:
    record(database)
    assert (
        "DE: not sealed yet; 0 seals, 0 sealed rows as they were, 1 to be sealed" in run("auditor_de", "verify").output
    )
    seal(database)
    result = run("auditor_de", "verify")
    assert result.exit_code == 0
    assert [
        "rows without territory: intact; 1 seals, 0 sealed rows as they were, 0 to be sealed",
        "DE: intact; 1 seals, 1 sealed rows as they were, 0 to be sealed",
        "not checked, because this login may not read it: CH",
    ] == result.output.splitlines()


def test_tampering_is_exit_code_1_and_named(run: Run, database: Database) -> None:
    record(database)
    seal(database)
    tamper(database, "UPDATE {schema}.lead_access_audit SET reason = 'owner'")
    result = run("auditor_de", "verify")
    assert result.exit_code == 1
    assert "TAMPERED WITH: DE, seal 1: row 1 was changed" in result.output.splitlines()
    found = json.loads(run("auditor_de", "verify", "--json").output)
    assert (found["intact"], found["chains"][1]["findings"][0]["rows"]) == (False, [[1, 1]])


def test_gaps_are_exit_code_0_and_explained(run: Run, database: Database, tmp_path: Path) -> None:
    lines = [raised_denial(database), raised_denial(database)]
    record(database)
    seal(database)
    result = run("auditor_de", "verify")
    assert result.exit_code == 0
    assert "2 numbers have no row: 1-2" in result.output
    assert "A denial raised in plain SQL leaves its facts in the server's log" in result.output
    log = tmp_path / "postgresql.log"
    log.write_bytes(b"\xff\n".join(f"LOG:  {line}\n".encode() for line in lines))
    result = run("auditor_de", "verify", "--log", str(log))
    assert "2 numbers without a row stand in the log as denials that were raised" in result.output
    assert "have no row" not in result.output


def test_an_export_is_verified_offline_and_against_the_database(run: Run, database: Database, tmp_path: Path) -> None:
    record(database)
    seal(database)
    file = str(tmp_path / "audit.jsonl")
    result = run("auditor_both", "export", "--sealed", "-o", file)
    assert (result.exit_code, result.stderr) == (0, "1 rows written\n")
    result = CliRunner(env={"DATABASE_URL": "postgresql://nowhere.invalid/"}).invoke(
        main, ["audit", "verify", "--file", file]
    )
    assert result.exit_code == 0
    assert "3 seals linked, 1 rows as they were sealed" in result.output
    assert run("auditor_both", "verify", "--against", file).exit_code == 0
    tamper(database, "TRUNCATE {schema}.lead_access_audit_seals")
    assert run("auditor_both", "verify").exit_code == 0
    assert run("auditor_both", "verify", "--against", file).exit_code == 1
    text = Path(file).read_text(encoding="utf-8")
    Path(file).write_text(text.replace('"not_owner"', '"owner"'), encoding="utf-8")
    result = run("auditor_both", "verify", "--file", file)
    assert result.exit_code == 1
    assert "TAMPERED WITH: DE, seal 1: row 1 was changed" in result.output


def test_a_failed_export_leaves_no_file(run: Run, database: Database, tmp_path: Path) -> None:
    record(database)
    seal(database)
    database.sql("REVOKE SELECT ON {schema}.lead_access_audit FROM {auditor}")
    assert run("auditor_de", "export", "--sealed", "-o", str(tmp_path / "audit.jsonl")).exit_code == 1
    assert [] == list(tmp_path.iterdir())
    result = run("auditor_de", "export", "-o", str(tmp_path / "no folder" / "audit.jsonl"))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "No such file or directory" in result.stderr


def test_an_export_goes_to_stdout_as_well(run: Run, database: Database) -> None:
    record(database, at="2025-02-01T12:00Z")
    result = run("auditor_de", "export", "--since", "2025-02-01T13:00+01:00", "--until", "2025-02-02T00:00Z")
    assert [1] == [json.loads(line)["id"] for line in result.stdout.splitlines()]
    assert "" == run("auditor_de", "export", "--until", "2025-02-01T12:00Z").stdout


def test_old_months_are_detached(run: Run, database: Database) -> None:
    record(database, at="2025-02-01")
    run("operator", "partitions")
    assert "nothing to detach before 2025-02\n" == run("operator", "detach", "--before", "2025-02").output
    result = run("operator", "detach", "--before", "2025-03")
    assert result.exit_code == 1
    assert "lead_access_audit_2025_02 is not sealed to its end. A run of leadprotect audit seal must" in result.stderr
    run("operator", "seal")
    assert "lead_access_audit_2025_02 detached with 1 rows: archive it, then drop it\n" == (
        run("operator", "detach", "--before", "2025-03").output
    )
    database.sql("DROP TABLE {schema}.lead_access_audit_2025_02")
    result = run("auditor_de", "verify")
    assert result.exit_code == 0
    assert "  2025-02 was detached as lead_access_audit_2025_02, which is gone: check its archive" in result.output


def test_who_could_edit_is_a_table_or_json(run: Run, database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    at = database.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')")[0]
    header, line = run("auditor_de", "who", str(lead), "--at", at).output.splitlines()
    assert ["territory", "user", "could", "edit", "reason"] == header.split()[:5]
    assert line.split()[0] == "DE"
    assert database.user(1) in line
    assert {"yes", "owner", "assign"} <= set(line.split())
    (right,) = json.loads(run("auditor_de", "who", str(lead), "--at", at, "--json").output)
    assert (right["user_id"], right["could_edit"]) == (database.user(1), True)


def test_attempts_are_a_table_or_json(run: Run, database: Database) -> None:
    record(database, note="from the form")
    assert "from the form" in run("auditor_de", "list", "--outcome", "DENY").output.splitlines()[1]
    assert ["DENY"] == [one["outcome"] for one in json.loads(run("auditor_de", "list", "--json").output)]
    assert [] == json.loads(run("auditor_de", "list", "--outcome", "ALLOW", "--json").output)


BAD: dict[tuple[str, ...], tuple[int, str]] = {
    ("partitions", "--ahead", "-1"): (1, "months ahead: -1 is not between 0 and 120"),
    ("detach", "--before", "2025-13"): (2, "'2025-13' is not a month such as 2026-03"),
    ("detach", "--before", "2999-01"): (1, "2999-01 is still to come"),
    ("who", "LEAD", "--at", "yesterday"): (2, "'yesterday' is not a time such as 2026-03-01T09:00+01:00"),
    ("who", "LEAD", "--at", "2026-03-01"): (2, "'2026-03-01' needs a time zone"),
    ("who", "LEAD", "--at", "2999-01-01T00:00Z"): (1, "2999-01-01T00:00:00+00:00 is still to come"),
    ("who", "LEAD", "--at", "2026-01-01T00:00Z"): (1, "nothing is known of lead"),
    ("who", "no lead", "--at", "2026-01-01T00:00Z"): (1, "lead_id: 'no lead' is not of type"),
    ("list", "--limit", "0"): (1, "limit: 0 is not between 1 and 10000"),
    ("list", "--outcome", "PERHAPS"): (2, "'PERHAPS' is not one of 'ALLOW', 'DENY'"),
    ("verify", "--file", "no-such-file"): (2, "'no-such-file': No such file or directory"),
    ("verify", "--file", __file__): (1, "line 1: this is no line of an export with seals"),
    ("verify", "--file", __file__, "--log", __file__): (2, "--file checks a file alone"),
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_clear_error(run: Run, database: Database, arguments: tuple[str, ...]) -> None:
    login = "operator" if arguments[0] in {"partitions", "detach"} else "auditor_de"
    given = [str(database.new_id()) if word == "LEAD" else word for word in arguments]
    result = run(login, *given)
    code, message = BAD[arguments]
    assert code == result.exit_code
    assert message in result.stderr
    assert 1 == sum("Error" in line for line in result.stderr.splitlines())


COMMANDS: dict[tuple[str, ...], set[str]] = {
    ("partitions",): {"operator"},
    ("seal",): {"operator"},
    ("verify",): {"auditor_de"},
    ("export",): {"auditor_de"},
    ("export", "--sealed"): {"auditor_de"},
    ("list",): {"auditor_de"},
    ("who", "LEAD", "--at", "NOW"): {"auditor_de", "manager_de"},
}


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_each_command_is_for_its_office(run: Run, database: Database, arguments: tuple[str, ...]) -> None:
    values: dict[str, Any] = {
        "LEAD": database.lead("DE", owner=database.user(1)),
        "NOW": database.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')")[0],
    }
    given = [str(values.get(word, word)) for word in arguments]
    logins = ("seller_de", "manager_de", "auditor_de", "operator", "outsider")
    results = {login: run(login, *given) for login in logins}
    assert COMMANDS[arguments] == {login for login, result in results.items() if result.exit_code == 0}
    refused = [result.stderr for result in results.values() if result.exit_code]
    assert all("the login lacks the role for this call" in line for line in refused)
