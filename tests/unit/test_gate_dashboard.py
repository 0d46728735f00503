"""The dashboard, and what postgres_exporter is asked for it: built as shipped, about series that are there."""

from __future__ import annotations

import json
import re

import prometheus_client
import promql_parser
import pytest
import yaml

from leadprotect import metrics, settings
from leadprotect.gates.measures import PRESETS
from leadprotect.gates.rules import dashboard as shipped
from leadprotect.gates.rules import exporter_queries, rendered
from tests.support.dashboard import built

PANELS = json.loads(shipped())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?=\{)")


def test_the_shipped_dashboard_is_what_the_builder_makes() -> None:
    assert built() == shipped(), "run `make rules`"


def test_no_two_panels_share_an_id_or_a_place() -> None:
    assert len(PANELS) == len({panel["id"] for panel in PANELS})
    assert len(PANELS) == len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS})
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)


def test_prometheus_and_service_are_variables_of_every_panel() -> None:
    variables = {one["name"]: one for one in json.loads(shipped())["templating"]["list"]}
    assert ["datasource", "service"] == list(variables)
    assert ("datasource", "prometheus") == (variables["datasource"]["type"], variables["datasource"]["query"])
    assert {"${datasource}"} == {panel["datasource"]["uid"] for panel in PANELS}
    assert "${datasource}" == variables["service"]["datasource"]["uid"]
    assert [] == [query for query in QUERIES if 'service="$service"' not in query]


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_is_promql_about_what_the_rules_record(query: str) -> None:
    promql_parser.parse(query.replace("$service", "leadprotect"))
    for measures in PRESETS.values():
        rules = yaml.safe_load(rendered(measures)["leadprotect.yaml"])["groups"][0]["rules"]
        known = {rule["record"] for rule in rules if "record" in rule} | {"ALERTS"}
        assert METRIC.findall(query)
        assert [] == [name for name in METRIC.findall(query) if name not in known]


def test_what_the_rules_take_of_ours_is_what_the_exporter_is_asked_for() -> None:
    asked = yaml.safe_load(exporter_queries(settings.parse({})))
    exported = {f"{name}_{column}" for name, one in asked.items() for entry in one["metrics"] for column in entry}
    taken = set(re.findall(r"\bleadprotect_\w+", rendered(PRESETS["micrometer"])["leadprotect.yaml"]))
    assert {"leadprotect_phase_reached", "leadprotect_backfill_scanned"} <= taken <= exported


def test_what_the_rules_take_of_the_library_is_what_it_counts() -> None:
    registry = prometheus_client.CollectorRegistry()
    metrics.enable(registry)
    exported = prometheus_client.generate_latest(registry).decode()
    taken = set(re.findall(r"\blead_access\w+", rendered(PRESETS["micrometer"])["leadprotect.yaml"]))
    assert {"lead_access_assert_allow_total", "lead_access_assert_deny_total"} == taken
    assert taken <= set(re.findall(r"^lead_access\w+", exported, re.MULTILINE))
    assert 'lead_access_assert_deny_total{reason="not_owner"}' in exported


def test_the_exporter_s_queries_name_what_the_host_named() -> None:
    text = exporter_queries(settings.parse({"schema": "Lead Guard", "version_table": "guard versions"}))
    assert 'FROM "Lead Guard"."guard versions"' in text
    assert 'FROM "Lead Guard".backfill_status()' in text
    assert '"Lead Guard_operator"' in text
