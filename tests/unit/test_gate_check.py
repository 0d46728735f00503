"""One look at Prometheus: whatever it answers, hides or spoils, the verdict is the one that may be drawn from it."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from leadprotect import settings
from leadprotect.cli import main
from leadprotect.gates import check, prometheus
from leadprotect.gates.check import Gates, evaluate
from leadprotect.gates.rules import BUCKETS, GATES
from leadprotect.gates.verdict import Answer, Evaluation, Verdict
from tests.support.programs import program
from tests.support.prometheus_like import PrometheusLike, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROCEED, PAUSE, ROLLBACK, UNKNOWN = Verdict
SERIES = {gate.name: gate.series for gate in GATES}
TOKEN = "token-s3cret"  # noqa: S105 - it must not show up anywhere


@pytest.fixture
def like() -> Iterator[PrometheusLike]:
    with serving(PrometheusLike()) as served:
        yield served


def look(like: PrometheusLike, **given: str) -> Evaluation:
    return evaluate(Gates(settings=settings.parse({"prometheus_url": like.url} | given)), None)


def of(found: Evaluation, name: str) -> Answer:
    (answer,) = [answer for answer in found.answers if answer.name == name]
    return answer


def only(found: Evaluation) -> str:
    """The reason of the one answer that is not PROCEED."""
    (reason,) = found.reasons
    return reason


# --- what is there


def test_a_good_rollout_proceeds_and_each_question_is_told_with_value_and_threshold(like: PrometheusLike) -> None:
    found = look(like)
    assert (PROCEED, ()) == (found.verdict, found.reasons)
    assert {gate.name for gate in GATES} | {"clock", "rules"} == {answer.name for answer in found.answers}
    latency = of(found, "latency")
    assert 'leadprotect:http_latency:p95_seconds{service="leadprotect"}' == latency.query
    assert (0.05, 0.3, "0.05, at most 0.3") == (latency.value, latency.threshold, latency.why)
    assert "10, at least 0.1" == of(found, "traffic").why


@pytest.mark.parametrize(
    ("gate", "state", "expected", "said"),
    [
        ("latency", "firing", ROLLBACK, "latency: LeadprotectLatencyHigh is firing: 0.05, at most 0.3"),
        ("errors", "firing", ROLLBACK, "errors: LeadprotectErrorsHigh is firing"),
        ("latency", "pending", PAUSE, "latency: LeadprotectLatencyHigh is pending"),
        ("deadlocks", "firing", PAUSE, "deadlocks: LeadprotectDeadlocks is firing"),
        ("deadlocks", "pending", PAUSE, "deadlocks: LeadprotectDeadlocks is pending"),
        ("lock_waits", "firing", PAUSE, "lock_waits: LeadprotectLockWaits is firing"),
        ("replica_lag", "firing", PAUSE, "replica_lag: LeadprotectReplicaLag is firing"),
        ("denials", "firing", PAUSE, "denials: LeadprotectDenialsUnusual is firing"),
        ("data", "firing", PAUSE, "data: LeadprotectDataAbsent is firing"),
        ("latency", "asleep", UNKNOWN, "latency: LeadprotectLatencyHigh is asleep, which is no state"),
    ],
)
def test_an_alert_gives_its_gate_s_verdict(
    like: PrometheusLike, gate: str, state: str, expected: Verdict, said: str
) -> None:
    like.rules[gate]["state"] = state
    found = look(like)
    assert expected == found.verdict
    assert only(found).startswith(said)


def test_a_firing_rollback_wins_over_everything_that_is_missing(like: PrometheusLike) -> None:
    like.rules["errors"]["state"] = "firing"
    like.series.clear()
    del like.rules["deadlocks"]
    found = look(like)
    assert ROLLBACK == found.verdict
    assert UNKNOWN == of(found, "deadlocks").verdict


# --- what is missing


@pytest.mark.parametrize(
    ("gate", "values", "said"),
    [
        ("latency", [], "latency: there is no such series"),
        ("latency", ["NaN"], "latency: its value is nan: there is nothing to judge by"),
        ("latency", ["+Inf"], "latency: its value is inf"),
        ("errors", ["0.001", "0.002"], "errors: 2 series answer where one was expected"),
        ("deadlocks", [], "deadlocks: there is no such series"),
        ("lock_waits", ["NaN"], "lock_waits: its value is nan"),
        ("traffic", ["0.05"], "traffic: 0.05, at least 0.1: there is nothing to judge by"),
        ("traffic", ["0"], "traffic: 0, at least 0.1"),
        ("targets", ["0.4"], "targets: 0.4, at least 0.5"),
        ("exporter", ["0"], "exporter: 0, at least 1"),
        ("freshness", ["61"], "freshness: 61, at most 60"),
        ("freshness", [], "freshness: there is no such series"),
    ],
)
def test_what_can_t_be_judged_is_unknown(like: PrometheusLike, gate: str, values: list[str], said: str) -> None:
    like.series[SERIES[gate]] = [({"instance": str(n)}, value) for n, value in enumerate(values)]
    found = look(like)
    assert UNKNOWN == found.verdict
    assert only(found).startswith(said)


@pytest.mark.parametrize("gate", ["lock_waits", "replica_lag", "denials"])
def test_what_is_quiet_where_nothing_is_wrong_may_have_no_series(like: PrometheusLike, gate: str) -> None:
    like.series[SERIES[gate]] = []
    found = look(like)
    assert (PROCEED, "no series, so nothing is wrong") == (found.verdict, of(found, gate).why)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lastEvaluation": "0001-01-01T00:00:00Z", "health": "unknown"}, "latency: LeadprotectLatencyHigh was not ev"),
        (
            {"health": "err", "lastError": "many-to-many"},
            "latency: LeadprotectLatencyHigh could not be evaluated: many",
        ),
        ({"health": "unknown"}, "latency: LeadprotectLatencyHigh could not be evaluated: unknown"),
        ({"labels": {"service": "leadprotect"}}, "latency: LeadprotectLatencyHigh has no label gate_action: rollback"),
        (
            {"labels": {"service": "leadprotect", "gate_action": "pause"}},
            "latency: LeadprotectLatencyHigh has no label gate_action: rollback",
        ),
    ],
)
@pytest.mark.parametrize("state", ["inactive", "firing"])
def test_a_rule_that_can_t_be_believed_is_unknown_whatever_it_says(
    like: PrometheusLike, change: dict[str, Any], said: str, state: str
) -> None:
    like.rules["latency"] |= change | {"state": state}
    found = look(like)
    assert UNKNOWN == found.verdict
    assert only(found).startswith(said)


@pytest.mark.parametrize(("age", "expected"), [(45, PROCEED), (60, UNKNOWN)])
def test_a_rule_is_stale_after_three_of_its_own_intervals(like: PrometheusLike, age: float, expected: Verdict) -> None:
    like.rules["errors"] |= {"lastEvaluation": like.ago(age), "state": "inactive"}
    found = look(like)
    assert expected == found.verdict
    if expected is UNKNOWN:
        assert "was evaluated 60 s ago, which should be every 15 s" in only(found)


def test_a_stale_rule_that_fires_rolls_nothing_back(like: PrometheusLike) -> None:
    like.rules["errors"] |= {"lastEvaluation": like.ago(600), "state": "firing"}
    assert UNKNOWN == look(like).verdict


def test_a_missing_rule_is_named(like: PrometheusLike) -> None:
    del like.rules["errors"]
    found = look(like)
    assert (UNKNOWN, "errors: LeadprotectErrorsHigh is not loaded") == (found.verdict, only(found))


@pytest.mark.parametrize("gate", ["lock_waits", "denials", "counters"])
def test_a_rule_that_was_not_rendered_is_not_asked_for_and_a_lost_one_is(like: PrometheusLike, gate: str) -> None:
    del like.rules[gate]
    assert UNKNOWN == look(like).verdict  # its threshold is there
    del like.thresholds[gate]
    found = look(like)
    assert PROCEED == found.verdict
    assert gate not in {answer.name for answer in found.answers}


def test_rules_that_are_loaded_in_part_are_unknown(like: PrometheusLike) -> None:
    like.thresholds.clear()
    found = look(like)
    assert UNKNOWN == found.verdict
    assert (
        "its threshold is not there (leadprotect:gate_threshold): the rules are loaded in part"
        in of(found, "errors").why
    )


def test_no_rules_at_all_are_unknown_with_what_to_run(like: PrometheusLike) -> None:
    like.rules.clear()
    found = look(like)
    assert UNKNOWN == found.verdict
    assert "no rules of leadprotect are loaded: leadprotect gate render -o DIR" in of(found, "rules").why


def test_rules_of_another_service_are_not_ours(like: PrometheusLike) -> None:
    found = look(like, prometheus_service="crm")
    assert UNKNOWN == found.verdict
    assert "no rules of service crm are loaded, only of leadprotect" in of(found, "rules").why
    assert UNKNOWN == of(found, "latency").verdict


def test_a_rule_that_is_loaded_twice_is_unknown_with_its_files(like: PrometheusLike) -> None:
    like.rules["again"] = dict(like.rules["latency"])
    assert "latency: LeadprotectLatencyHigh is loaded 2 times (f.yaml)" == only(look(like))


@pytest.mark.parametrize("state", ["inactive", "firing"])
def test_rules_for_another_objective_are_not_believed(like: PrometheusLike, state: str) -> None:
    like.rules["latency"]["state"] = state
    found = look(like, slo_p95="200ms")
    assert UNKNOWN == found.verdict
    assert "latency: the rules are for an objective of 0.15 s, slo_p95 is 0.2 s: render them again" == only(found)


@pytest.mark.parametrize("bounds", [["0.1", "0.3", "+Inf"], ["+Inf"], [], ["x"]])
def test_a_histogram_that_ends_below_the_threshold_would_be_good_for_ever(
    like: PrometheusLike, bounds: list[str]
) -> None:
    like.series[BUCKETS] = [({"le": bound}, "1") for bound in bounds]
    found = look(like)
    assert UNKNOWN == found.verdict
    assert "so no latency above 0.3 s would be seen" in only(found)


# --- what goes wrong with the answer


def spoil(
    what: str, status: int, body: str, **headers: str
) -> Callable[[str], tuple[int, dict[str, str], bytes] | None]:
    """Answer so where the path or the query holds `what`."""
    return lambda asked: (status, headers, body.encode()) if what in asked else None


ERROR = json.dumps({"status": "error", "errorType": "timeout", "error": "query timed out"})


@pytest.mark.parametrize(
    ("status", "body", "headers", "said"),
    [
        (200, "<html>hello</html>", {"content-type": "text/html"}, "answers text/html, not JSON"),
        (
            200,
            '{"status": "success", "da',
            {"content-type": "application/json"},
            "answers JSON that ends in the middle",
        ),
        (200, "[]", {"content-type": "application/json"}, "answers JSON that is not Prometheus's"),
        (200, '{"status": "success"}', {"content-type": "application/json"}, "answers in a form that is not Prom"),
        (
            200,
            '{"status": "success", "data": 1}',
            {"content-type": "application/json"},
            "answers in a form that is not",
        ),
        (
            302,
            "",
            {"location": "https://me:s3cret@sso.example/login?token=s3cret"},
            "redirects to https://sso.example,",
        ),
        (301, "", {"location": "/prometheus/"}, "redirects to another path"),
        (401, "<html>", {"content-type": "text/html"}, "refuses this login (HTTP 401)"),
        (403, "{}", {}, "refuses this login (HTTP 403)"),
        (503, ERROR, {"content-type": "application/json"}, "answers HTTP 503: query timed out"),
        (503, "Service Unavailable", {}, "answers HTTP 503"),
        (200, ERROR, {"content-type": "application/json"}, "answers HTTP 200: query timed out"),
        (404, "404 page not found", {}, "answers HTTP 404"),
    ],
)
def test_an_answer_that_is_none_is_unknown_with_its_reason(
    like: PrometheusLike, status: int, body: str, headers: dict[str, str], said: str
) -> None:
    like.spoiled = spoil("", status, body, **headers)
    found = look(like)
    assert (UNKNOWN, 1) == (found.verdict, len(found.answers))
    assert only(found).startswith(f"prometheus: Prometheus {said}")
    assert "s3cret" not in only(found)


def test_one_question_that_fails_leaves_the_others_their_answers(like: PrometheusLike) -> None:
    like.rules["errors"]["state"] = "firing"
    like.spoiled = spoil(SERIES["latency"], 503, ERROR)
    found = look(like)
    assert (ROLLBACK, UNKNOWN) == (found.verdict, of(found, "latency").verdict)
    assert "Prometheus answers HTTP 503: query timed out" == of(found, "latency").why
    assert PROCEED == of(found, "traffic").verdict


def test_a_warning_in_an_answer_makes_it_unknown_for_it_may_be_a_part(like: PrometheusLike) -> None:
    like.warnings = ["a store did not answer"]
    found = look(like)
    assert (UNKNOWN, "warnings: Prometheus warns: a store did not answer") == (found.verdict, only(found))


@pytest.mark.parametrize(("skew", "expected"), [(30, PROCEED), (-30, PROCEED), (300, UNKNOWN), (-300, UNKNOWN)])
def test_the_age_of_a_rule_is_told_by_prometheus_s_own_clock(skew: float, expected: Verdict) -> None:
    with serving(PrometheusLike(skew=skew)) as like:
        found = look(like)
    assert expected == found.verdict
    assert expected == of(found, "clock").verdict
    assert PROCEED == of(found, "latency").verdict


def test_a_prometheus_that_is_not_there_is_unknown() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = evaluate(Gates(settings=settings.parse({"prometheus_url": f"http://127.0.0.1:{port}"})), None)
    assert only(found).startswith("prometheus: Prometheus can't be reached: ")


def test_a_prometheus_that_hangs_is_unknown_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "REQUEST_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        found = evaluate(Gates(settings=settings.parse({"prometheus_url": address})), None)
    assert "prometheus: Prometheus gave no answer within 0.3 s" == only(found)


def test_one_that_hangs_in_the_middle_is_asked_no_further_and_a_rollback_still_counts(
    like: PrometheusLike, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "REQUEST_S", 0.3)
    like.rules["errors"]["state"] = "firing"
    go_on = threading.Event()

    def hang(asked: str) -> None:
        if SERIES["deadlocks"] in asked:
            go_on.wait(10)

    like.spoiled = hang
    found = look(like)
    asked = len(like.asked)
    go_on.set()
    assert ROLLBACK == found.verdict
    assert "Prometheus gave no answer within 0.3 s" == of(found, "traffic").why
    assert not [path for path, _ in like.asked[:asked] if SERIES["traffic"] in path]


def test_one_that_answers_byte_by_byte_is_not_waited_for(like: PrometheusLike, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LIMIT_S", 0.5)
    like.trickling = True
    assert "prometheus: gave no whole answer within 0.5 s" == only(look(like))


def test_a_flood_is_cut_off(like: PrometheusLike, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_LARGEST", 1024 * 1024)
    like.spoiled = spoil("", 200, " " * (2 * 1024 * 1024))
    assert "prometheus: Prometheus answers more than 1 MiB" == only(look(like))


def test_without_an_address_nothing_is_known() -> None:
    found = evaluate(Gates(settings=settings.parse({})), None)
    assert (UNKNOWN, "prometheus: prometheus_url is not set") == (found.verdict, only(found))


# --- the way there


def test_no_proxy_of_the_environment_stands_between(like: PrometheusLike, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert PROCEED == look(like).verdict


def test_a_prefix_of_the_address_is_kept(like: PrometheusLike) -> None:
    like.url += "/prefix"
    assert PROCEED == look(like).verdict
    assert {"/prefix/api/v1/"} == {path[:15] for path, _ in like.asked}


def test_a_bearer_token_is_read_anew_each_time_and_never_told(like: PrometheusLike, tmp_path: Path) -> None:
    file = tmp_path / "token"
    for token in (TOKEN, TOKEN + "2"):
        file.write_text(token + "\n", encoding="utf-8")
        found = look(like, prometheus_token_file=str(file))
        assert PROCEED == found.verdict
        assert f"Bearer {token}" == like.asked[-1][1]["authorization"]
        assert TOKEN not in repr(found)
    like.spoiled = spoil("", 401, "no")
    assert TOKEN not in repr(look(like, prometheus_token_file=str(file)))


def test_basic_auth_takes_its_password_from_a_file(like: PrometheusLike, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{TOKEN}:x\n", encoding="utf-8")
    found = look(like, prometheus_user="bot", prometheus_password_file=str(tmp_path / "password"))
    assert PROCEED == found.verdict
    sent = like.asked[-1][1]["authorization"].removeprefix("Basic ")
    assert f"bot:{TOKEN}:x" == base64.b64decode(sent).decode()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prometheus_token_file": "missing"}, "prometheus_token_file can't be read (FileNotFoundError)"),
        ({"prometheus_token_file": "empty"}, "prometheus_token_file is empty"),
        ({"prometheus_token_file": "lines"}, "prometheus_token_file holds a character that a request can't carry"),
        ({"prometheus_user": "me"}, "prometheus_user and prometheus_password_file belong together"),
        ({"prometheus_password_file": "lines"}, "prometheus_user and prometheus_password_file belong together"),
        (
            {"prometheus_user": "me", "prometheus_password_file": "p", "prometheus_token_file": "t"},
            "a request carries prometheus_token_file or prometheus_user, not both",
        ),
        ({"prometheus_ca_file": "lines"}, "prometheus_ca_file can't be read"),
        ({"prometheus_ca_file": "missing"}, "prometheus_ca_file can't be read"),
        ({"prometheus_cert_file": "lines"}, "prometheus_cert_file can't be read"),
    ],
)
def test_a_login_that_can_t_be_used_is_unknown_and_nothing_is_sent(
    like: PrometheusLike, given: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "lines").write_text(f"{TOKEN}\n{TOKEN}", encoding="utf-8")
    found = look(like, **given)
    assert only(found).startswith(f"prometheus: Prometheus was not asked: {said}")
    assert ([], False) == (like.asked, TOKEN in repr(found))


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of localhost that signs itself, with its key."""
    folder = tmp_path_factory.mktemp("tls")
    asked = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    openssl = program("openssl", "openssl")
    subprocess.run([openssl, *asked, *names], cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text(), encoding="utf-8")
    return both


@pytest.mark.parametrize("ask_for_ours", [False, True])
def test_a_prometheus_behind_tls_is_believed_by_its_certificate_only(certificate: Path, *, ask_for_ours: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if ask_for_ours:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificate)
    ours = {"prometheus_cert_file": str(certificate)} if ask_for_ours else {}
    with serving(PrometheusLike(), context) as like:
        assert "CERTIFICATE_VERIFY_FAILED" in only(look(like, **ours))
        assert [] == like.asked
        assert PROCEED == look(like, prometheus_ca_file=str(certificate), **ours).verdict
        if ask_for_ours:
            assert "can't be reached" in only(look(like, prometheus_ca_file=str(certificate)))


# --- the command


def gate(*options: str, **environment: str) -> Any:
    return CliRunner().invoke(main, ["gate", *options], env=environment)


@pytest.mark.parametrize("options", [(), ("check",)])
@pytest.mark.parametrize(("state", "code"), [("inactive", 0), ("pending", 10), ("firing", 20)])
def test_the_exit_code_is_the_verdict_s(like: PrometheusLike, options: tuple[str, ...], state: str, code: int) -> None:
    like.rules["errors"]["state"] = state
    done = gate(*options, "--no-database", LEADPROTECT_PROMETHEUS_URL=like.url)
    assert code == done.exit_code
    assert {0: "PROCEED", 10: "PAUSE", 20: "ROLLBACK"}[code] == done.stdout.splitlines()[0]
    assert 'leadprotect:http_errors:ratio{service="leadprotect"}' in done.stdout
    assert "errors: value 0.001, threshold 0.02" in done.stdout


def test_the_command_without_a_prometheus_is_unknown() -> None:
    done = gate("--no-database")
    assert (30, "UNKNOWN\n  prometheus: prometheus_url is not set\n") == (done.exit_code, done.stdout[:48])


def test_json_holds_every_answer(like: PrometheusLike) -> None:
    like.series[SERIES["latency"]] = [({}, "NaN")]
    done = gate("--json", "--no-database", LEADPROTECT_PROMETHEUS_URL=like.url)
    found = json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert (30, "UNKNOWN") == (done.exit_code, found["verdict"])
    (latency,) = [answer for answer in found["answers"] if answer["name"] == "latency"]
    assert {"name", "query", "value", "threshold", "verdict", "why"} == latency.keys()
    assert latency["value"] is None


def test_control_characters_of_a_label_move_no_cursor(like: PrometheusLike) -> None:
    like.rules["errors"] |= {"health": "err", "lastError": "\x1b[2Jbad"}
    done = gate("--no-database", LEADPROTECT_PROMETHEUS_URL=like.url)
    assert "\x1b" not in done.stdout


def test_without_the_extra_the_command_says_what_to_install() -> None:
    hide = "import sys; sys.modules['httpx'] = None; from leadprotect.cli import main; main(['gate'])"
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert (1, "Error: the gates need the extra gates: pip install 'leadprotect[gates]'\n") == (
        done.returncode,
        done.stderr,
    )
