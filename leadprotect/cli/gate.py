"""``leadprotect gate``: what Prometheus and the database say of a rollout, and the rules that they say it by."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from leadprotect.cli import output
from leadprotect.cli.terminal import echo, verbatim
from leadprotect.cli.words import Duration
from leadprotect.errors import InvalidRequest
from leadprotect.gates.check import Gates, evaluate
from leadprotect.gates.measures import PRESETS, preset
from leadprotect.gates.rules import dashboard, exporter_queries, rendered
from leadprotect.gates.verdict import EXIT, Evaluation, Verdict
from leadprotect.settings import current, url


class _Gate(click.Group):
    """Plain ``leadprotect gate`` is ``leadprotect gate check``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["check", *args]
        return super().parse_args(ctx, args)


@click.group("gate", cls=_Gate)
def gate_group() -> None:
    """Say whether a rollout may go on; alone, the same as `leadprotect gate check`."""


@gate_group.command("check")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.option("--no-database", is_flag=True, help="Ask Prometheus only, not the database itself.")
def check_command(*, as_json: bool, no_database: bool) -> None:
    """Ask Prometheus and the database once, and print each question with value and threshold; reads only.

    Deadlocks in the database count by their increase, which one look can't see: Prometheus does.

    Exit code 0: PROCEED; 10: PAUSE; 20: ROLLBACK; 30: UNKNOWN, which pauses and never goes on.
    """
    s = current()
    found = evaluate(Gates(settings=s), None if no_database else partial(url, s))
    if as_json:
        click.echo(output.as_json({"verdict": found.verdict, **output.fields_of(found)}, indent=2))
    else:
        _show(found)
    sys.exit(EXIT[found.verdict])


def _show(found: Evaluation) -> None:
    """The verdict, why it is no better, then each question with what it came to."""
    echo("\n".join([found.verdict, *(f"  {reason}" for reason in found.reasons)]))
    for one in found.answers:
        value, threshold = _number(one.value), _number(one.threshold)
        why = "" if one.verdict is Verdict.PROCEED and one.value is not None else f"; {one.why}"
        echo(f"\n{one.verdict:<8}  {one.name}: value {value}, threshold {threshold}{why}")
        verbatim(f"          {one.query}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


@gate_group.command("render")
@click.option("--preset", "preset_name", default="micrometer", show_default=True, help=f"{', '.join(PRESETS)}.")
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Folder to write into.")
@click.option("--service", help="Label of all series and alerts; as prometheus_service, which is the default.")
@click.option("--slo-p95", type=Duration(), help="What 95 of 100 requests may take; default: slo_p95 of the settings.")
@click.option("--metric", help="Histogram of the requests, without _bucket.")
@click.option("--requests", help="Counter of the requests by status; default: the metric's _count.")
@click.option("--routes", help="Histogram by route; default: the metric.")
@click.option("--label", help="Label of the route: uri, handler, http_route.")
@click.option("--status", help="Label of the status: status, http_response_status_code.")
@click.option("--unit", type=float, help="Seconds that 1 means in the metric: 0.001 for milliseconds.")
@click.option("--selector", help='Matchers of the service\'s metrics, such as job="leads".')
@click.option("--alive", help='Series that are 1 while the service is up, such as up{job="leads"}.')
@click.option("--postgres", help='Matchers of postgres_exporter\'s metrics, such as job="postgres".')
@click.option("--exporter", help="Version of postgres_exporter; before 0.17 it can't say who waits for locks.")
@click.option("--denials/--no-denials", default=None, help="Whether the service counts what leadprotect decides.")
@click.option("--window", type=Duration(), help="What a rate looks back to; at least four times --every.")
@click.option("--every", type=Duration(), help="How often the rules are judged.")
@click.option("--latency-for", type=Duration(), help="How long the latency must be too high.")
@click.option("--errors-for", type=Duration(), help="How long there must be too many errors.")
@click.option("--errors", type=float, help="Share of requests that may fail.")
@click.option("--traffic-floor", type=float, help="Requests a second below which nothing is judged.")
@click.option("--lock-waits", type=float, help="Sessions that may wait for locks.")
@click.option("--replica-lag", type=float, help="Bytes that a replica may be behind.")
@click.option("--runbooks", help="Where the runbook pages are: a URL or a folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the files' names.")
def render_command(*, preset_name: str, folder: Path, as_json: bool, **given: object) -> None:
    """Write rules for Prometheus, with the tests that `promtool test rules` runs over them.

    Beside them: queries for postgres_exporter, which tell phase and backfill, and a dashboard for Grafana.
    What is not given comes from the preset, service and objective from the settings.
    """
    s = current()
    given = {"service": s.prometheus_service, "slo_p95": s.slo_p95} | {k: v for k, v in given.items() if v is not None}
    try:
        wanted = preset(preset_name, **given)
        rules = rendered(wanted)
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from None
    files = rules | {
        f"{wanted.service}_queries.yaml": exporter_queries(s),
        f"{wanted.service}_dashboard.json": dashboard(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        said = f"{folder} can't be written to ({error.strerror}); name another folder"
        raise click.BadParameter(said, param_hint="--output") from None
    written = [folder / name for name in files]
    if as_json:
        click.echo(output.as_json({"preset": preset_name, "service": wanted.service, "files": written}))
        return
    for file in written:
        verbatim(str(file))
