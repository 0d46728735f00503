"""What the commands tell a program: whole JSON, and each time with its zone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click
import pytest
from click.testing import CliRunner

from leadprotect import settings
from leadprotect.access import ways
from leadprotect.cli import main, output
from leadprotect.settings.files import CONFIG, write_ini
from tests.conftest import janitor_of
from tests.support.auditing import record, seal
from tests.support.chains import Project
from tests.support.commands import members
from tests.support.database import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.database import Database
    from tests.support.profiles import Profile

PAGE = ROOT / "docs/reference/json.md"
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
LOOKS_LIKE_A_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")


@dataclass(frozen=True)
class Answer:
    at: datetime
    gaps: tuple[range, ...]


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that can answer in JSON."""
    if isinstance(group, click.Group):
        for name, command in members(group).items():
            yield from commands(command, (*path, name))
    elif any("--json" in option.opts for option in group.params):
        yield path


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(inner)


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all keys: findings[].check; what a list holds is one thing."""
    if isinstance(value, list):
        for inner in value:
            yield from keys(inner, f"{path}[]")
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield f"{path}.{name}".lstrip(".")
            yield from keys(inner, f"{path}.{name}".lstrip("."))


def documented() -> dict[str, set[str]]:
    """What the page of reference says of each command: its keys, without the sign of a list at their end."""
    found: dict[str, set[str]] = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, rows = section.partition("\n")
        keys_here = {key.removesuffix("[]") for key in re.findall(r"^\| `([^`]+)` \|", rows, re.MULTILINE)}
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", title), keys_here)
    return found


def undocumented(command: str, told: list[Any]) -> set[str]:
    """Keys that the command told and the page does not name; * in it stands for any name."""
    known = documented().get(command, set())
    patterns = [re.compile(re.escape(key).replace(r"\*", r"[^.]+")) for key in known]
    said = {key.removesuffix("[]") for answer in told for key in keys(answer)}
    parents = {key.rpartition(".")[0].removesuffix("[]") for key in known}
    return {key for key in said - parents if not any(pattern.fullmatch(key) for pattern in patterns)}


def answers(printed: str) -> list[Any]:
    """One JSON text over several lines, or one on each."""
    try:
        return [json.loads(printed)]
    except json.JSONDecodeError:
        return [json.loads(line) for line in printed.splitlines()]


MANAGED = ["--territory", "DE", "--as", "{user}", "--dry-run"]
ASKED = {
    ("status",): [],
    ("plan",): [],
    ("backfill", "run"): ["DE"],
    ("backfill", "status"): [],
    ("audit", "verify"): [],
    ("audit", "who"): ["{lead}", "--at", "{now}"],
    ("audit", "list"): [],
    ("doctor",): [],
    ("redteam",): [],
    ("apply",): ["--dry-run"],
    ("pin", "status"): [],
    ("owner", "show"): ["{lead}", "--territory", "DE"],
    ("rules", "list"): ["--territory", "DE"],
    ("gate", "check"): [],
    ("guard",): ["--dry-run", "--", "alembic", "upgrade", "head"],
    ("move",): ["--resume", "--as", "{user}"],
    ("new",): ["add AT", "--phase", "contract"],
    ("next",): [],
    ("scripts",): ["{folder}"],
    ("territory", "list"): [],
    ("territory", "add"): ["AT"],
    ("territory", "rename"): ["XX", "YY"],
    ("territory", "remove"): ["XX"],
    ("backfill", "pause"): [],
    ("backfill", "resume"): [],
    ("backfill", "stop"): [],
    ("roles",): [],
    ("gate", "render"): ["--output", "{folder}/gate"],
    ("host-change",): ["--", "true"],
    ("audit", "partitions"): [],
    ("audit", "seal"): [],
    ("audit", "detach"): ["--before", "2020-01"],
    ("audit", "anchor"): ["--output", "{folder}/anchors"],
    ("owner", "assign"): ["{lead}", "--to", "{user}", *MANAGED],
    ("owner", "transfer"): ["{lead}", "--to", "{user}", *MANAGED],
    ("owner", "release"): ["{lead}", *MANAGED],
    ("rules", "grant"): ["{user}", "VIEW_ONLY", *MANAGED],
    ("rules", "revoke"): ["{user}", "COLLABORATOR", *MANAGED],
    ("rules", "share"): ["{lead}", "{user}", *MANAGED],
    ("rules", "suspend"): ["{user}", *MANAGED],
    ("rules", "unshare"): ["{lead}", "{user}", *MANAGED],
    ("rollback",): [],
    ("repair",): [],
    ("purge",): ["--left"],
    ("init",): ["--dry-run", "--force", "--yes", "--set", "qualifying_kinds=call"],
    ("validate",): ["--static"],
    ("hub", "create"): ["--in", "{url}"],
    ("hub", "verify"): ["--in", "{url}"],
    ("hub", "drop"): ["--in", "{url}"],
    ("shadow", "start"): [],
    ("shadow", "watch"): ["--for", "0s"],
    ("shadow", "report"): [],
    ("shadow", "stop"): [],
}
A_VERDICT = {
    ("shadow", "report"), ("plan",), ("purge",), ("doctor",), ("redteam",), ("gate", "check"), ("guard",),
    ("hub", "verify"),
}  # fmt: skip
"""Their exit code is the answer: before contract, to a superuser, and without a Prometheus, not 0."""
OF_A_CHAIN = {"new", "next", "validate"}
"""They ask files, not the database."""
MEASURED_FOR_MINUTES = {
    ("bench", "access"), ("bench", "backfill"), ("bench", "scale"), ("bench", "all"),
    ("bench", "rollout"), ("bench", "fleet"), ("demo",), ("rehearse",)
}  # fmt: skip
OF_AN_OPERATOR = {("audit", "partitions"), ("audit", "seal"), ("audit", "detach")}
TELL_A_TIME = {
    ("backfill", "pause"),
    ("backfill", "resume"),
    ("backfill", "stop"),
    ("audit", "anchor"),
    ("status",),
    ("backfill", "status"),
    ("audit", "who"),
    ("audit", "list"),
    ("owner", "show"),
    ("rules", "list"),
    ("gate", "check"),
    ("guard",),
    ("shadow", "start"),
    ("shadow", "report"),
    ("shadow", "stop"),
}


def test_the_page_of_json_has_a_section_for_each_command_and_no_other() -> None:
    commands_with_json = {" ".join(path) for path in commands(main)}
    missing = sorted(commands_with_json - set(documented()))
    assert [] == missing, f"docs/reference/json.md: add a section `## \\`{missing[0]}\\`` with a row a key"
    assert set() == set(documented()) - commands_with_json


def test_no_command_that_answers_in_json_is_forgotten() -> None:
    assert set(ASKED) | MEASURED_FOR_MINUTES == set(commands(main))


TOLD_OF: dict[str, Any] = {}
"""The lead of the databases that tests copy, by profile."""


@pytest.fixture
def told_of(
    profile: Profile, make_database: Callable[..., Database], templates: dict[tuple[str, str], str]
) -> tuple[Database, Any]:
    """A database at the migrate step that has something to tell, and its lead; made once and copied."""
    key = (profile.name, "told of")
    if key not in templates:
        database = make_database("expanded")
        lead = database.lead("DE", owner=database.user(1))
        database.rule(database.user(2), "COLLABORATOR")
        record(database)
        seal(database)
        ran = CliRunner().invoke(main, ["backfill", "run", "DE", "CH"])
        assert 0 == ran.exit_code, ran.output
        ways.close()
        janitor_of(database.server, f"template_{profile.name}_told", database.name).init()
        templates[key] = f"template_{profile.name}_told"
        TOLD_OF[profile.name] = lead
    return make_database(key[1]), TOLD_OF[profile.name]


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("command", ASKED, ids=" ".join)
def test_every_time_in_json_is_rfc_3339_with_a_zone(
    told_of: tuple[Database, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...]
) -> None:
    expanded, lead = told_of
    if command[0] in OF_A_CHAIN:
        project = Project(tmp_path)
        project.add("crm_0001_expand_tables")
        monkeypatch.setenv(CONFIG, str(project.ini))
    # a session with a zone of its own, which is no reason to tell another time
    expanded.sql(f"ALTER DATABASE \"{expanded.name}\" SET timezone = 'Asia/Kolkata'")
    now = datetime.now(UTC).isoformat()
    if command[0] == "move":
        file = write_ini(tmp_path)
        databases = f"[leadprotect.databases]\nDE = {expanded.url}\nCH = {expanded.url}\n".replace("%", "%%")
        file.write_text(f"{file.read_text(encoding='utf-8')}\n{databases}", encoding="utf-8")
        monkeypatch.setenv(CONFIG, str(file))
        settings.current.cache_clear()
    if command[0] == "territory":
        assert 0 == CliRunner().invoke(main, ["territory", "add", "XX"]).exit_code
    if command[0] == "shadow":
        assert 0 == CliRunner().invoke(main, ["shadow", "start"]).exit_code
    if command[0] == "audit" and command not in OF_AN_OPERATOR:
        monkeypatch.setenv("DATABASE_URL", expanded.login_url("auditor_both"))
        settings.current.cache_clear()
    if command[0] == "hub":
        urls = {"leadprotect.databases": dict.fromkeys(("DE", "CH"), expanded.url)}
        monkeypatch.setenv(CONFIG, str(write_ini(tmp_path, urls)))
        settings.current.cache_clear()
        assert 0 == CliRunner().invoke(main, ["hub", "create", "--in", expanded.url]).exit_code
    words = {"lead": lead, "url": expanded.url, "now": now, "folder": tmp_path, "user": expanded.user(2)}
    arguments = [argument.format(**words) for argument in ASKED[command]]
    told = CliRunner().invoke(main, [*command, "--json", *arguments], catch_exceptions=False)
    assert told.exit_code in ({0, 1, 2, 3, 30} if command in A_VERDICT else {0}), told.output
    assert set() == undocumented(" ".join(command), answers(told.stdout))
    times = [text for answer in answers(told.stdout) for text in texts(answer) if LOOKS_LIKE_A_TIME.match(text)]
    assert [] == [time for time in times if not RFC_3339.fullmatch(time)]
    assert (command in TELL_A_TIME) == bool(times)
    began = datetime.now(UTC) - timedelta(days=1)
    assert all(began < datetime.fromisoformat(time) <= datetime.now(UTC) for time in times)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime(2026, 3, 1, 9, 0, 0, 250, timezone(timedelta(hours=1))), "2026-03-01T08:00:00.000250Z"),
        (date(2026, 3, 1), "2026-03-01"),
        (Decimal("8.10"), "8.10"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (range(3, 6), [3, 5]),
        (Answer(datetime(2026, 3, 1, tzinfo=UTC), (range(1, 2),)), {"at": "2026-03-01T00:00:00Z", "gaps": [[1, 1]]}),
    ],
)
def test_a_value_has_one_form_in_json(value: object, expected: object) -> None:
    assert {"value": expected} == json.loads(output.as_json({"value": value}))


@pytest.mark.parametrize("value", [datetime(2026, 3, 1), object()], ids=["no zone", "no form"])  # noqa: DTZ001
def test_what_would_be_guessed_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        output.as_json([value])


@pytest.mark.profiles("pg18")
def test_repair_tells_what_it_would_run_and_with_yes_what_it_has_run(database: Database) -> None:
    database.sql("ALTER TABLE {schema}.user_lead_assignments NO FORCE ROW LEVEL SECURITY")
    asked = CliRunner().invoke(main, ["repair", "--json"])
    plan = json.loads(asked.stdout)
    assert (1, False, True) == (asked.exit_code, plan["run"], len(plan["statements"]) > 0)
    assert plan["left"]
    done = CliRunner().invoke(main, ["repair", "--json", "--yes"])
    told = json.loads(done.stdout)
    assert (0, True, []) == (done.exit_code, told["run"], told["left"])
    assert [] == json.loads(CliRunner().invoke(main, ["repair", "--json"]).stdout)["statements"]


def test_what_asks_on_a_terminal_asks_nothing_for_a_program() -> None:
    refused = CliRunner().invoke(main, ["purge", "--json"])
    assert (2, True) == (refused.exit_code, "add --yes, or --left" in refused.output)
