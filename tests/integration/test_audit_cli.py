"""``leadprotect audit`` as operators and auditors run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from leadprotect import settings
from leadprotect.audit import export, history, verification
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
        "DE: not sealed yet; 0 seals, 0 sealed rows as they were, 1 to be sealed"
        in run("auditor_both", "verify").output
    )
    seal(database)
    result = run("auditor_both", "verify")
    assert result.exit_code == 0
    assert [
        "rows without territory: intact; 1 seals, 0 sealed rows as they were, 0 to be sealed",
        "CH: intact; 1 seals, 0 sealed rows as they were, 0 to be sealed",
        "DE: intact; 1 seals, 1 sealed rows as they were, 0 to be sealed",
    ] == result.output.splitlines()
    told = json.loads(run("auditor_both", "verify", "--json").output)
    assert ("intact", []) == (told["verdict"], told["left_out"])


def test_tampering_is_exit_code_1_and_named(run: Run, database: Database) -> None:
    record(database)
    seal(database)
    tamper(database, "UPDATE {schema}.lead_access_audit SET reason = 'owner'")
    result = run("auditor_de", "verify")
    assert result.exit_code == 1
    assert "TAMPERED WITH: DE, seal 1: row 1 was changed" in result.output.splitlines()
    found = json.loads(run("auditor_de", "verify", "--json").output)
    assert (found["intact"], found["chains"][2]["findings"][0]["rows"]) == (False, [[1, 1]])


def test_gaps_are_exit_code_0_and_explained(run: Run, database: Database, tmp_path: Path) -> None:
    lines = [raised_denial(database), raised_denial(database)]
    record(database)
    seal(database)
    result = run("auditor_both", "verify")
    assert result.exit_code == 0
    assert "2 numbers have no row: 1-2" in result.output
    assert "A denial raised in plain SQL leaves its facts in the server's log" in result.output
    log = tmp_path / "postgresql.log"
    log.write_bytes(b"\xff\n".join(f"LOG:  {line}\n".encode() for line in lines))
    result = run("auditor_both", "verify", "--log", str(log))
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


def test_an_export_of_another_database_is_no_evidence_against_this_one(
    run: Run, database: Database, make_database: Callable[..., Database], tmp_path: Path
) -> None:
    seal(database)
    other, file = make_database("head"), str(tmp_path / "audit.jsonl")
    seal(other)
    with other.connect("auditor_both") as conn, Path(file).open("w", encoding="utf-8") as out:
        export.export(conn, out, sealed=True)
    result = run("auditor_both", "verify", "--against", file)
    assert (2, "") == (result.exit_code, result.stdout)
    assert f"was made of another database ({other.name}), not of this one ({database.name})" in result.stderr
    run("auditor_both", "export", "--sealed", "-o", file)
    assert 0 == run("auditor_both", "verify", "--against", file).exit_code
    tamper(database, "TRUNCATE {schema}.lead_access_audit_seals")
    seal(database)  # made anew: the same audit, with another first seal
    assert 1 == run("auditor_both", "verify", "--against", file).exit_code


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
    result = run("auditor_both", "verify")
    assert result.exit_code == 0
    assert "  2025-02 was detached as lead_access_audit_2025_02, which is gone: check its archive" in result.output


def test_who_could_edit_is_a_table_or_json(run: Run, database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    at = database.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')")[0]
    header, line = run("auditor_de", "who", str(lead), "--at", at).stdout.splitlines()
    assert ["territory", "user", "could", "edit", "reason"] == header.split()[:5]
    assert line.split()[0] == "DE"
    assert database.user(1) in line
    assert {"yes", "owner", "assign"} <= set(line.split())
    (right,) = json.loads(run("auditor_de", "who", str(lead), "--at", at, "--json").stdout)["rights"]
    assert (right["user_id"], right["could_edit"]) == (database.user(1), True)


def test_attempts_are_a_table_or_json(run: Run, database: Database) -> None:
    record(database, note="from the form")
    assert "from the form" in run("auditor_de", "list", "--outcome", "DENY").output.splitlines()[1]
    (told,) = json.loads(run("auditor_de", "list", "--json").output)["attempts"]
    # an id is a text, also where the database has numbers
    assert ("DENY", str) == (told["outcome"], type(told["lead_id"]))
    assert [] == json.loads(run("auditor_de", "list", "--outcome", "ALLOW", "--json").output)["attempts"]


def test_a_login_of_one_territory_is_told_of_the_others(run: Run, database: Database, tmp_path: Path) -> None:
    for territory in ("DE", "CH", None):
        record(database, territory)
    seal(database)
    note = "left out, because this login does not hold their roles: CH\n"
    result = run("auditor_de", "list")
    assert (0, note, 3) == (result.exit_code, result.stderr, len(result.stdout.splitlines()))
    told = json.loads(run("auditor_de", "list", "--json").stdout)
    assert (2, ["CH"]) == (len(told["attempts"]), told["left_out"])
    file = tmp_path / "audit.jsonl"
    result = run("auditor_de", "export", "--sealed", "-o", str(file))
    assert (0, "2 rows written\n" + note) == (result.exit_code, result.stderr)
    assert ["CH"] == json.loads(file.read_text(encoding="utf-8").splitlines()[0])["left_out"]
    assert "may not read it: CH" in run("auditor_de", "verify", "--file", str(file)).output
    assert "1 rows written\n" == run("auditor_de", "export", "--territory", "DE").stderr  # nothing that was asked for
    result = run("auditor_both", "list")
    assert ("", 4) == (result.stderr, len(result.stdout.splitlines()))  # the control: nothing is left out
    assert "3 rows written\n" == run("auditor_both", "export").stderr


def test_who_tells_of_the_territories_that_it_left_out(run: Run, database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    at = database.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')")[0]
    for login, left_out in (("auditor_de", ["CH"]), ("manager_de", ["CH"]), ("auditor_both", [])):
        result = run(login, "who", str(lead), "--at", at)
        assert [f"left out, because this login does not hold their roles: {code}" for code in left_out] == (
            result.stderr.splitlines()
        )
        assert left_out == json.loads(run(login, "who", str(lead), "--at", at, "--json").stdout)["left_out"]


NOTHING = ("list",), ("export",), ("export", "--sealed"), ("who", "LEAD", "--at", "NOW"), ("anchor", "--output", "FILE")


@pytest.mark.parametrize("arguments", NOTHING, ids=" ".join)
def test_a_login_of_no_territory_gets_no_empty_answer(
    run: Run, database: Database, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    for territory in ("DE", None):
        record(database, territory)
    seal(database)
    lead = database.lead("DE", owner=database.user(1))
    values = {"LEAD": str(lead), "NOW": "2026-01-01T00:00Z", "FILE": str(tmp_path / "anchors")}
    result = run("auditor", *(values.get(word, word) for word in arguments))
    assert (1, "") == (result.exit_code, result.stdout)
    roles = ", ".join(f'"{database.settings.role(code)}"' for code in ("ch", "de"))
    login = database.profile.login("auditor")
    assert "holds the role of no territory, so nothing of CH, DE would be in the answer" in result.stderr
    assert f'a DBA can run: GRANT {roles} TO "{login}"' in result.stderr


def test_rows_without_a_territory_are_had_by_asking_for_them(run: Run, database: Database) -> None:
    for territory in ("DE", None):
        record(database, territory)
    seal(database)
    result = run("auditor", "list", "--territory", "", "--json")
    assert [None] == [one["territory"] for one in json.loads(result.stdout)["attempts"]]
    assert 0 == run("auditor", "verify", "--territory", "").exit_code


def test_what_may_not_be_read_is_not_judged_and_exit_code_2(run: Run, database: Database) -> None:
    record(database)
    seal(database)
    result = run("auditor_de", "verify")
    assert 2 == result.exit_code
    assert [
        "rows without territory: intact; 1 seals, 0 sealed rows as they were, 0 to be sealed",
        "CH: not judged, because this login may not read it",
        "DE: intact; 1 seals, 1 sealed rows as they were, 0 to be sealed",
    ] == result.output.splitlines()
    told = json.loads(run("auditor_de", "verify", "--json").output)
    assert ("not judged", False, ["CH"]) == (told["verdict"], told["intact"], told["left_out"])
    assert ["intact", "not judged", "intact"] == [chain["verdict"] for chain in told["chains"]]
    assert 0 == run("auditor_de", "verify", "--territory", "DE").exit_code
    assert 2 == run("auditor_de", "verify", "--territory", "CH").exit_code
    assert 2 == run("auditor", "verify").exit_code
    tamper(database, "UPDATE {schema}.lead_access_audit SET reason = 'owner'")
    assert 1 == run("auditor_de", "verify").exit_code  # what is known to be wrong goes before what is not known
    assert 2 == run("auditor", "verify").exit_code


def test_whoever_no_policy_binds_gets_one_verdict_for_each_chain(database: Database) -> None:
    record(database)
    seal(database)
    login = f"{database.name}_unbound"
    database.sql(f'CREATE ROLE "{login}" LOGIN BYPASSRLS IN ROLE "{database.settings.role("auditor")}"')
    try:
        with psycopg.connect(database.server.url(database.name, login)) as conn:
            found = verification.verify_audit(conn)
            listed = history.attempts(conn)
    finally:
        database.sql(f'DROP ROLE "{login}"')
    verdicts = [(chain.territory, chain.verdict) for chain in found.chains]
    assert [(None, "intact"), ("CH", "intact"), ("DE", "intact")] == verdicts
    assert (1, ()) == (len(listed.attempts), listed.left_out)


def test_no_answer_is_no_verdict_of_tampering(run: Run, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(database)
    for login in ("seller_de", "operator", "outsider"):
        result = run(login, "verify")
        assert (2, "") == (result.exit_code, result.stdout)
        assert "Error: nothing was judged: the login lacks the role for this call" in result.stderr
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody:s3cret@127.0.0.1:1/x")
    settings.current.cache_clear()
    result = CliRunner().invoke(main, ["audit", "verify"])
    assert 2 == result.exit_code
    assert "s3cret" not in result.output


def test_an_anchor_is_written_and_compared(run: Run, database: Database, tmp_path: Path) -> None:
    record(database)
    seal(database)
    file = str(tmp_path / "anchors.jsonl")
    result = run("auditor_both", "anchor", "--output", file, "--to", database.url)
    assert 0 == result.exit_code
    (head,) = database.sql("SELECT encode(hash, 'hex') FROM {schema}.lead_access_audit_seals WHERE territory = 'DE'")
    assert f"DE: 1 seals, the newest is {head}" in result.stdout.splitlines()
    assert "warning: these anchors are on the server of the audit itself" in result.stderr
    assert [database.profile.login("auditor_both")] == database.sql(
        "SELECT anchored_by::text FROM {schema}.audit_anchors"
    )
    for place in (file, database.url):
        assert 0 == run("auditor_both", "verify", "--anchor", place).exit_code
    result = run("auditor_de", "anchor", "--output", file)
    assert "left out, because this login does not hold their roles: CH\n" == result.stderr
    tamper(database, "TRUNCATE {schema}.lead_access_audit_seals")
    tamper(database, "DELETE FROM {schema}.lead_access_audit")
    assert 0 == run("auditor_both", "verify").exit_code
    for place in (file, database.url):
        result = run("auditor_both", "verify", "--anchor", place)
        assert 1 == result.exit_code
        assert "TAMPERED WITH: DE, seal 1: this seal was kept elsewhere, and is gone" in result.output.splitlines()


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
    ("verify", "--file", __file__): (2, "line 1: this is no line of an export with seals"),
    ("verify", "--file", __file__, "--log", __file__): (2, "--file checks a file alone"),
    ("verify", "--file", __file__, "--anchor", __file__): (2, "--file checks a file alone"),
    ("verify", "--anchor", __file__): (2, "line 1: this is no anchor, or it was damaged"),
    ("verify", "--anchor", "no-such-file"): (2, "no-such-file: No such file or directory"),
    ("verify", "--anchor", "postgresql://a:b@127.0.0.1:1/x"): (2, "no connection to the anchors"),
    ("verify", "--territory", "XX"): (2, "territory 'XX' is not known; known are CH, DE"),
    ("list", "--territory", "XX"): (1, "territory 'XX' is not known; known are CH, DE"),
    ("list", "--territory", "CH"): (1, "this login does not hold the role of CH; a DBA can run: GRANT"),
    ("export", "--territory", "CH"): (1, "this login does not hold the role of CH; a DBA can run: GRANT"),
    ("anchor",): (2, "name a place: --output FILE or --to URL"),
    ("anchor", "--output", "x", "--territory", "XX"): (1, "territory 'XX' is not known"),
    ("anchor", "--output", "x"): (1, "nothing is sealed yet, so there is nothing to keep: run leadprotect audit seal"),
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
    ("verify", "--territory", "DE"): {"auditor_de"},
    ("anchor", "--output", "FILE", "--territory", "DE"): {"auditor_de"},
    ("export",): {"auditor_de"},
    ("export", "--sealed"): {"auditor_de"},
    ("list",): {"auditor_de"},
    ("who", "LEAD", "--at", "NOW"): {"auditor_de", "manager_de"},
}


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_each_command_is_for_its_office(
    run: Run, database: Database, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    seal(database)
    values: dict[str, Any] = {
        "LEAD": database.lead("DE", owner=database.user(1)),
        "FILE": str(tmp_path / "anchors"),
        "NOW": database.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.USZ')")[0],
    }
    given = [str(values.get(word, word)) for word in arguments]
    logins = ("seller_de", "manager_de", "auditor_de", "operator", "outsider")
    results = {login: run(login, *given) for login in logins}
    assert COMMANDS[arguments] == {login for login, result in results.items() if result.exit_code == 0}
    refused = [result.stderr for result in results.values() if result.exit_code]
    assert all("the login lacks the role for this call" in line for line in refused)
