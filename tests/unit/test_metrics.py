"""Counters for Prometheus, in a registry of the caller's."""

from __future__ import annotations

import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from leadprotect import metrics
from leadprotect.errors import SettingsError


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics.enable(registry)
    return registry


def test_every_label_set_exists_from_the_start(registry: CollectorRegistry) -> None:
    shown = generate_latest(registry).decode()
    assert "lead_access_assert_allow_total 0.0" in shown
    for reason in ("no_context", "not_found", "suspended", "unassigned", "not_owner"):
        assert f'lead_access_assert_deny_total{{reason="{reason}"}} 0.0' in shown
    for kind in metrics.KINDS:
        assert f'leadprotect_check_seconds_count{{kind="{kind}"}} 0.0' in shown


def test_attempts_are_counted_by_reason(registry: CollectorRegistry) -> None:
    metrics.allowed()
    metrics.denied("not_owner")
    metrics.denied("not_owner")
    assert registry.get_sample_value("lead_access_assert_allow_total") == 1
    assert registry.get_sample_value("lead_access_assert_deny_total", {"reason": "not_owner"}) == 2


def test_a_check_that_fails_is_timed_too(registry: CollectorRegistry) -> None:
    with pytest.raises(ZeroDivisionError), metrics.timed("check"):
        raise ZeroDivisionError
    assert registry.get_sample_value("leadprotect_check_seconds_count", {"kind": "check"}) == 1


def test_nothing_is_counted_before_it_is_enabled() -> None:
    registry = CollectorRegistry()
    metrics.allowed()
    metrics.enable(registry)
    assert registry.get_sample_value("lead_access_assert_allow_total") == 0


def test_every_registry_that_is_enabled_counts_everything_once(registry: CollectorRegistry) -> None:
    second = CollectorRegistry()
    metrics.enable(second)
    metrics.enable(registry)
    metrics.allowed()
    metrics.denied("not_owner")
    with metrics.timed("check"):
        pass
    for each in (registry, second):
        assert each.get_sample_value("lead_access_assert_allow_total") == 1
        assert each.get_sample_value("lead_access_assert_deny_total", {"reason": "not_owner"}) == 1
        assert each.get_sample_value("leadprotect_check_seconds_count", {"kind": "check"}) == 1


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(SettingsError, match="extra gates: pip install 'leadprotect"):
        metrics.enable()
