"""Builds the dashboard that the package ships, by Grafana's own builder (`make rules` writes it)."""

from __future__ import annotations

from typing import TypeVar

from grafana_foundation_sdk.builders import dashboard, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
    VariableRefresh,
)

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
OURS = '{service="$service"}'

Panel = stat.Panel | statetimeline.Panel | timeseries.Panel
P = TypeVar("P", stat.Panel, statetimeline.Panel, timeseries.Panel)

# 0 good, 1 pending, 2 firing: what is loaded and says nothing is good, what is not loaded has no line
STATES = (
    'max by (gate) (2 * ALERTS{service="$service",alertstate="firing"})'
    ' or max by (gate) (ALERTS{service="$service",alertstate="pending"})'
    f" or max by (gate) (0 * leadprotect:gate_threshold{OURS})"
)


def built() -> str:
    """The JSON of the dashboard."""
    whole = (
        dashboard.Dashboard("leadprotect rollout")
        .uid("leadprotect-rollout")
        .description("A migration of leadprotect: where it stands, what its gates say, and what they judge by")
        .tags(["leadprotect"])
        .time("now-1h", "now")
        .refresh("10s")
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("Prometheus"))
        .with_variable(
            dashboard.QueryVariable("service")
            .datasource(SOURCE)
            .query("label_values(leadprotect:gate_threshold, service)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
    )
    for number, panel in enumerate(panels(), 1):
        whole = whole.with_panel(panel.id(number).datasource(SOURCE))
    return JSONEncoder(sort_keys=True, indent=2).encode(whole.build()) + "\n"


def panels() -> list[Panel]:
    return [
        asked(stat.Panel().title("Phase"), (f"leadprotect:phase:reached{OURS}", "{{phase}}"))
        .text_mode(common.BigValueTextMode.NAME)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .span(4)
        .height(8),
        asked(statetimeline.Panel().title("Gates"), (STATES, "{{gate}}"))
        .mappings([verdicts()])
        .thresholds(levels())
        .merge_values(merge_values=True)
        .span(20)
        .height(8),
        lines(
            "p95 of the service against its limit",
            "s",
            (f"leadprotect:http_latency:p95_seconds{OURS}", "p95"),
            ('leadprotect:gate_threshold{service="$service",gate="latency"}', "limit"),
            ('leadprotect:gate_threshold{service="$service",gate="latency"} / 2', "objective"),
        ),
        lines(
            "p95 of the five slowest routes", "s", (f"topk(5, leadprotect:http_route_latency:p95_seconds{OURS})", "")
        ),
        lines(
            "Errors against their limit",
            "percentunit",
            (f"leadprotect:http_errors:ratio{OURS}", "errors"),
            ('leadprotect:gate_threshold{service="$service",gate="errors"}', "limit"),
        ),
        lines(
            "Requests against the floor below which nothing is judged",
            "reqps",
            (f"leadprotect:http_requests:rate{OURS}", "requests"),
            ('leadprotect:gate_threshold{service="$service",gate="traffic"}', "floor"),
        ),
        lines(
            "Attempts to edit a lead: allowed, and denied by reason",
            "ops",
            (f"leadprotect:allowed:rate{OURS}", "allowed"),
            (f"leadprotect:denials:rate{OURS}", "{{reason}}"),
        ),
        lines("Backfill: share of the leads", "percentunit", (f"leadprotect:backfill:share{OURS}", "{{territory}}")),
        lines(
            "Backfill: leads a second, and where it is paused",
            "short",
            (f"leadprotect:backfill:rate{OURS}", "{{territory}}"),
            (f"leadprotect:backfill:paused{OURS}", "{{territory}} paused"),
        ),
        lines("Backfill: workers", "short", (f"leadprotect:backfill:workers{OURS}", "{{territory}}")),
        lines("Locks by mode", "short", (f"leadprotect:postgres_locks:count{OURS}", "{{mode}}")),
        lines("Deadlocks", "short", (f"leadprotect:postgres_deadlocks:increase{OURS}", "deadlocks")),
    ]


def lines(title: str, unit: str, *queries: tuple[str, str]) -> timeseries.Panel:
    return asked(timeseries.Panel().title(title).unit(unit).min(0).span(12).height(8), *queries)


def asked(panel: P, *queries: tuple[str, str]) -> P:
    for letter, (expression, legend) in zip("ABCDE", queries, strict=False):
        panel.with_target(Dataquery().expr(expression).legend_format(legend or "__auto").ref_id(letter))
    return panel


def verdicts() -> ValueMapping:
    names = {"0": ("good", "green"), "1": ("pending", "yellow"), "2": ("firing", "red")}
    return ValueMap({value: ValueMappingResult(text=text, color=color) for value, (text, color) in names.items()})


def levels() -> dashboard.ThresholdsConfig:
    steps = [Threshold(None, "green"), Threshold(1, "yellow"), Threshold(2, "red")]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
