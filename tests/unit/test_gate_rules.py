"""The rules: what is shipped is what the template says, and promtool's stories catch each mistake in them."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
import yaml
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.errors import InvalidRequest
from leadprotect.gates.measures import PRESETS, Measures, preset
from leadprotect.gates.rules import BUCKETS, GATES, THRESHOLDS, rendered
from tests.support import rules
from tests.support.database import ROOT
from tests.support.profiles import NIGHTLY
from tests.support.programs import program

if TYPE_CHECKING:
    from pathlib import Path

WHOLE_BY_DAY = "micrometer"
SLOW, FAILING = "a slow service", "many errors"
DEFAULT = rendered(Measures())["leadprotect.yaml"]
STORIES = "leadprotect_test.yaml"


def loaded(text: str) -> list[dict[str, Any]]:
    """The rules of a file."""
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def alerts(text: str) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in loaded(text) if "alert" in rule}


def told(folder: Path, files: dict[str, str], *names: str) -> str:
    """What promtool says of these files of stories; empty when all are true."""
    promtool = program("promtool", "prometheus")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    done = subprocess.run([promtool, "test", "rules", *names], cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == ("FAILED" not in said), said
    return "" if done.returncode == 0 else said


def stories_about(files: dict[str, str], *about: str) -> dict[str, str]:
    """The files of stories with those alone whose name begins so."""
    found = {}
    for name, text in files.items():
        if name.endswith("_test.yaml"):
            whole = yaml.safe_load(text)
            whole["tests"] = [story for story in whole["tests"] if story["name"].startswith(about)]
            if whole["tests"]:
                found[name] = yaml.safe_dump(whole)
    return found


# --- what is shipped


def test_the_shipped_rules_are_what_the_template_says() -> None:
    shipped = {path.name: path.read_text(encoding="utf-8") for path in rules.SHIPPED.iterdir()}
    assert rules.files() == shipped, "run `make rules`"


@pytest.mark.parametrize("name", PRESETS)
def test_the_shipped_rules_tell_good_bad_and_missing_apart(name: str, tmp_path: Path) -> None:
    names = (f"{name}.yaml", f"{name}_test.yaml", f"{name}_week_test.yaml")
    shipped = {file: (rules.SHIPPED / file).read_text(encoding="utf-8") for file in names}
    played = list(names[1:])
    if not NIGHTLY and name != WHOLE_BY_DAY:  # the others differ in names only, which these four need
        shipped |= stories_about(shipped, "a fast service", SLOW, FAILING, "a service that says no status")
        played = list(names[1:2])
    assert "" == told(tmp_path, shipped, *played)


@pytest.mark.parametrize("name", PRESETS)
def test_every_gate_has_its_alert_its_series_its_threshold_and_its_page(name: str) -> None:
    text = rendered(PRESETS[name])["leadprotect.yaml"]
    found = alerts(text)
    recorded = {(rule["record"], rule["labels"].get("gate")) for rule in loaded(text) if "record" in rule}
    assert {gate.alert for gate in GATES} == found.keys()
    for gate in GATES:
        assert gate.action == found[gate.alert]["labels"]["gate_action"]
        assert gate.name == found[gate.alert]["labels"].get("gate", "data")
        page = (ROOT / found[gate.alert]["annotations"]["runbook_url"]).read_text(encoding="utf-8")
        assert f"`{gate.alert}`, `gate_action: {gate.action}`" in page
    with_series = [gate for gate in GATES if gate.series]
    assert {(gate.series, gate.name) for gate in with_series} <= recorded
    told_apart = with_series + [gate for gate in GATES if gate.optional]  # rendered or lost
    assert {(THRESHOLDS, gate.name) for gate in told_apart} <= recorded
    assert (BUCKETS, None) in recorded


@pytest.mark.parametrize("name", PRESETS)
def test_every_expression_is_promql_and_every_series_carries_the_service(name: str) -> None:
    for rule in loaded(rendered(PRESETS[name])["leadprotect.yaml"]):
        promql_parser.parse(rule["expr"])
        assert "leadprotect" == rule["labels"]["service"]


def test_an_exporter_that_can_t_say_who_waits_gets_no_rule_that_stays_green() -> None:
    assert "LeadprotectLockWaits" in alerts(rendered(Measures(exporter="0.17.1"))["leadprotect.yaml"])
    for version in ("0.11", "0.16.0"):
        assert "lock_waits" not in rendered(Measures(exporter=version))["leadprotect.yaml"]


def test_without_counters_of_decisions_their_rules_are_left_out() -> None:
    assert {"leadprotect.yaml", STORIES} == rendered(Measures(denials=False)).keys()
    assert "lead_access_assert" not in "".join(rendered(Measures(denials=False)).values())


# --- what a host sets


def test_a_metric_of_one_s_own_brings_its_counter_and_routes_along() -> None:
    own = preset("micrometer", metric="crm_seconds", label="path", slo_p95=None)
    assert ("crm_seconds", "crm_seconds_count", "crm_seconds", "path", 0.15) == (
        own.metric,
        own.requests,
        own.routes,
        own.label,
        own.slo_p95,
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"metric": 'x{a="b"}'}, "--metric: "),
        ({"label": "a-b"}, "--label: "),
        ({"selector": 'job="a"} or vector(1)'}, "--selector: "),
        ({"selector": "job=a"}, "--selector: "),
        ({"selector": ""}, "--selector: "),
        ({"selector": 'job=~"(a"'}, "--selector: "),
        ({"alive": 'job="a"'}, "--alive: "),
        ({"service": 'a"'}, "--service: "),
        ({"exporter": "new"}, "--exporter: "),
        ({"runbooks": "x y"}, "--runbooks: "),
        ({"slo_p95": 0.0}, "--slo-p95: "),
        ({"slo_p95": float("nan")}, "--slo-p95: "),
        ({"errors": 2.0}, "--errors: "),
        ({"traffic_floor": 0.0}, "--traffic-floor: "),
        ({"every": 90.0, "window": 600.0}, "--every: "),
        ({"window": 30.0}, "--window: 30s holds fewer than 4 scrapes of 15s"),
        ({"errors_for": 10.0}, "--errors-for: 10s is shorter than --window"),
    ],
)
def test_what_would_make_a_rule_blind_is_refused_with_the_option_named(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rendered(replace(Measures(), **changed))
    assert str(caught.value).startswith(expected)


def test_render_writes_the_rules_of_the_settings_where_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEADPROTECT_SLO_P95", "200ms")
    monkeypatch.setenv("LEADPROTECT_PROMETHEUS_SERVICE", "crm")
    options = ["--metric", "api_seconds", "--label", "route", "--selector", 'job=~"api|web"', "--window", "2m"]
    done = CliRunner().invoke(main, ["gate", "render", *options, "-o", "out"])
    written = ["crm.yaml", "crm_test.yaml", "crm_week_test.yaml", "crm_queries.yaml", "crm_dashboard.json"]
    assert (0, [f"out/{name}" for name in written]) == (done.exit_code, done.output.split())
    text = (tmp_path / "out" / "crm.yaml").read_text(encoding="utf-8")
    (latency,) = [rule for rule in loaded(text) if rule.get("record") == "leadprotect:http_latency:p95_seconds"]
    assert 'api_seconds_bucket{job=~"api|web",route!~' in latency["expr"]
    assert "[2m]" in latency["expr"]
    assert "> 0.4" in alerts(text)["LeadprotectLatencyHigh"]["expr"]


def test_the_commands_of_the_how_to_write_the_files_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/how-to/gate-a-rollout.md").read_text(encoding="utf-8")
    ((line, shown),) = re.findall(r"\$ leadprotect (gate render .*)\n((?: +rules/.*\n)+)", page)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, shlex.split(line))
    assert (0, shown.split()) == (done.exit_code, done.output.split())
    short = re.findall(r"`(--window .*?)`", page)
    assert 0 == CliRunner().invoke(main, ["gate", "render", *shlex.split(short[-1]), "-o", "short"]).exit_code


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "statsd"], "--preset: 'statsd' is not one of micrometer, fastapi"),
        (["--window", "soon"], "'--window': 'soon' is not a duration"),
        (["--slo-p95", "0"], "--slo-p95: 0 is not above 0"),
    ],
)
def test_a_bad_option_of_render_is_one_line(options: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["gate", "render", *options, "-o", str(tmp_path / "out")])
    assert 2 == done.exit_code
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_can_t_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(main, ["gate", "render", "-o", str(tmp_path / "file" / "out")])
    said = f"--output: {tmp_path}/file/out can't be written to (Not a directory); name another folder\n"
    assert (2, True) == (done.exit_code, done.stderr.endswith(said)), done.stderr


HOSTS = {
    "another": Measures(
        exporter="0.11", denials=False, selector='job=~"web-.*",env="live"', alive='target_info{job="web-1"}'
    ),
    "slower": Measures(slo_p95=0.4, window=120, every=30, latency_for=300, errors_for=240, errors=0.1, traffic_floor=5),
    "hasty": Measures(window=10, every=1, latency_for=20, errors_for=12, denials=False),
}


@pytest.mark.parametrize("host", HOSTS if NIGHTLY else ["another"])
def test_the_rules_of_another_host_tell_good_bad_and_missing_apart(host: str, tmp_path: Path) -> None:
    files = rendered(HOSTS[host])
    assert "" == told(tmp_path, files, *[name for name in files if name.endswith("_test.yaml")])


# --- planted mistakes


def of_alert(name: str, pattern: str, instead: str) -> tuple[str, str]:
    """A mistake in one alert: its block of the file, and the block with the mistake."""
    (block,) = re.findall(rf"^      - alert: {name}\n(?:        .*\n)+", DEFAULT, re.MULTILINE)
    return block, re.sub(pattern, instead, block, count=1)


def of_series(name: str, pattern: str, instead: str) -> tuple[str, str]:
    (block,) = re.findall(rf"^      - record: {name}\n(?:        .*\n)+", DEFAULT, re.MULTILINE)
    return block, re.sub(pattern, instead, block, count=1)


P95, RATIO = "leadprotect:http_latency:p95_seconds", "leadprotect:http_errors:ratio"
MISTAKES = {
    "the latency of a metric that nobody has": (of_series(P95, "server_requests_seconds", "request_latency"), SLOW),
    "an exporter's metric by a name of its column": (
        of_series("leadprotect:postgres_deadlocks:increase", "pg_stat_database_deadlocks", "pg_deadlocks_total"),
        "a deadlock",
    ),
    "a label of the status that is not there": (of_series(RATIO, r',status=~"5\.\."', ',code=~"5.."'), FAILING),
    "a window that holds one scrape": (of_series(P95, r"\[1m\]", "[10s]"), SLOW),
    "a latency that need not last": (of_alert("LeadprotectLatencyHigh", r"        for: 10m\n", ""), SLOW),
    "errors that must last too long": (of_alert("LeadprotectErrorsHigh", "for: 5m", "for: 1h"), FAILING),
    "a threshold in milliseconds": (of_alert("LeadprotectLatencyHigh", r"> 0\.3", "> 300"), SLOW),
    "a quantile without its buckets": (of_series(P95, r"sum by \(le\)", "sum"), SLOW),
    "a week that one NaN spoils": (
        of_series("leadprotect:denials:ratio", r"\) > 0\)", ") >= 0)"),
        "more denials than in its own week",
    ),
    "nobody misses what is not there": (
        of_alert("LeadprotectDataAbsent", r"absent\((leadprotect:http_requests:rate\{.*?\})\)", r"(\1 == 0)"),
        "a service that nobody scrapes",
    ),
    "an alert that asks for nothing": (of_alert("LeadprotectErrorsHigh", "gate_action: rollback, ", ""), FAILING),
    "a counter that is taken for its increase": (
        of_series("leadprotect:postgres_deadlocks:increase", r"increase\((.*?)\[1m\]\)", r"\1"),
        "a deadlock",
    ),
    "a difference that a restart makes": (
        of_series("leadprotect:http_requests:rate", r"rate\((.*?)\[1m\]\)", r"deriv(\1[1m])"),
        "a service that starts again",
    ),
    "a rollback for two slow requests": (
        of_alert("LeadprotectLatencyHigh", r"\n          and on \(service\) .*", ""),
        "a few slow requests",
    ),
    "errors that are absent where there are none": (of_series(RATIO, r"\n          or 0 \* .*", ")"), "a fast service"),
    "errors of a service that says no status are none": (of_series(RATIO, ',status!=""', ""), "a service that says no"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_in_a_rule_is_caught_by_its_story(mistake: str, tmp_path: Path) -> None:
    (before, after), about = MISTAKES[mistake]
    assert before != after
    told_of = stories_about(rendered(Measures()), about)
    assert "FAILED" in told(tmp_path, {"leadprotect.yaml": DEFAULT.replace(before, after)} | told_of, *told_of)
