"""Asks every check of one database, in the order of danger, and says what could not be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from leadprotect import phases
from leadprotect.database.statements import own_names
from leadprotect.doctor import (
    evidence,
    facts,
    functions,
    grants,
    guards,
    handovers,
    keys,
    present,
    presets,
    roles,
    row_security,
    search_path,
    tables,
    versions,
    ways,
)
from leadprotect.doctor.finding import LEVELS, Check, Fault, Symptom
from leadprotect.errors import LeadProtectError, LockUnavailable
from leadprotect.preflight.applied import made_with
from leadprotect.preflight.columns import in_text
from leadprotect.preflight.standing import taken_away
from leadprotect.settings import Settings, current

if TYPE_CHECKING:
    from collections.abc import Iterable

CHECKS: tuple[Check, ...] = (
    search_path.search_path_open,
    search_path.operator_shadows,
    search_path.function_shadows,
    versions.version_table_open,
    versions.version_table_rows,
    versions.version_stamped,
    versions.host_change_under_way,
    versions.contract_not_standing,
    versions.undo_changed,
    row_security.row_security_off,
    row_security.leads_row_security_off,
    functions.function_changed,
    functions.function_missing,
    functions.function_stray,
    functions.function_unpinned,
    functions.function_owner,
    functions.function_grants,
    roles.owner_reachable,
    roles.role_missing,
    roles.role_powers,
    roles.service_unbound,
    roles.service_owns_leads,
    roles.exempt_role_reachable,
    roles.service_predefined_role,
    roles.admin_option_alone,
    roles.service_without_territory,
    roles.service_does_not_inherit,
    row_security.policy_missing,
    row_security.policy_changed,
    row_security.policy_stray,
    row_security.policy_runs_foreign_code,
    row_security.host_rows_hidden,
    row_security.host_unreadable,
    row_security.table_without_policies,
    tables.table_owner,
    tables.column_changed,
    tables.rule_on_ours,
    tables.table_unlogged,
    tables.partition_outside,
    guards.guard_missing,
    guards.guard_off,
    guards.guard_changed,
    guards.lead_trigger_missing,
    guards.lead_trigger_off,
    guards.lead_trigger_changed,
    guards.shadow_left_over,
    ways.definer_view,
    ways.materialised_view,
    ways.view_changed,
    ways.definer_function,
    ways.child_table,
    ways.rule_on_leads,
    ways.publication,
    ways.foreign_key_action,
    ways.host_before_trigger,
    ways.owner_column_code,
    grants.table_grants,
    grants.column_grants,
    grants.schema_open,
    grants.default_privileges,
    grants.leads_dangerous_grants,
    presets.preset_context,
    presets.preset_replication_role,
    presets.replication_role_granted,
    presets.preset_names,
    evidence.quarantine_foreign,
    evidence.quarantine_readable,
    evidence.quarantine_of_another_version,
    evidence.audit_month_missing,
    evidence.audit_default_filled,
    evidence.chain_short,
    evidence.seals_old,
    evidence.anchor_missing,
    handovers.handover_standing,
    keys.key_missing,
    keys.lead_id_open,
    keys.constraint_not_validated,
    keys.index_invalid,
    keys.index_not_leakproof,
    keys.unique_over_territories,
    facts.host_table_changed,
    facts.setting_not_applied,
    facts.territory_list_stale,
    facts.owner_column_differs,
    versions.server_version,
    versions.log_too_quiet,
    versions.upgrade_pending,
    facts.activities_in_future,
    facts.kind_without_activities,
    facts.leads_unprotected,
    facts.leads_unowned,
)
"""Every check, the worst first."""
DANGERS = tuple(check for check in CHECKS if check.level == "danger")
"""Those that the verdict of `leadprotect status` rests on."""

# whoever waited once for somebody's lock does not wait again for it in each check
_NO_MORE_PATIENCE = "SET LOCAL lock_timeout = '20ms'"

State = Literal["absent", "quarantine", "closed", "installed", "newer"]


@dataclass(frozen=True)
class NotJudged:
    """A check that could not be asked, and why."""

    check: str
    level: str
    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """What stands in a database: `verdict` is sound, danger or not judged; `asked` counts the checks that were.

    `state` is absent (none of ours), quarantine (rolled back), closed (inside of a host-change), installed, or newer
    (of a release that this version does not know, so its texts are not judged). `revision` is what the version table
    says, or for a login that may not read it, the least that stands. `standby`: a read replica answered.
    """

    verdict: Literal["sound", "danger", "not judged"]
    state: State
    revision: str | None
    standby: bool
    asked: int
    findings: tuple[Symptom, ...]
    not_judged: tuple[NotJudged, ...]


def examine(
    conn: psycopg.Connection[Any], *, settings: Settings | None = None, checks: Iterable[Check] = CHECKS
) -> Diagnosis:
    """Ask `checks` of the catalog, in a transaction of `conn` that can't write; findings come worst first.

    Works as any login: a check that this one may not ask is named in `not_judged`, and hides no other. Takes no
    lock beyond that of a SELECT; set a lock_timeout on `conn` where somebody may hold the host's tables.
    """
    with conn.transaction(), own_names(conn), present.one_look():
        conn.execute("SET TRANSACTION READ ONLY")
        s = in_text(conn, settings or current())
        made = made_with(conn, s) or s
        state, revision = _state(conn, s)
        standby = bool(conn.execute("SELECT pg_is_in_recovery()").fetchall()[0][0])
        findings: list[Symptom] = []
        not_judged: list[NotJudged] = []
        asked = 0
        for check in checks:
            if _applies(conn, made, check, state):
                answer = _asked(conn, s if check.needs == "settings" else made, check, state)
                asked += not isinstance(answer, NotJudged)
                (not_judged.append(answer) if isinstance(answer, NotJudged) else findings.extend(answer))
    findings.sort(key=lambda found: LEVELS.index(found.level))
    return Diagnosis(
        _verdict(state, findings, not_judged), state, revision, standby, asked, tuple(findings), tuple(not_judged)
    )


def _state(conn: psycopg.Connection[Any], s: Settings) -> tuple[State, str | None]:
    query = """
        SELECT n.nspname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname IN (%s, %s) AND c.relkind IN ('r', 'p') AND (n.nspname, c.relname) <> (%s, %s) GROUP BY 1
        """
    values = (s.schema, s.quarantine, s.version_table_schema, s.version_table)
    standing = {name for (name,) in conn.execute(query, values).fetchall()}
    revision = versions.applied(conn, s)
    if s.schema not in standing and revision is None:
        return "quarantine" if s.quarantine in standing else "absent", None
    if revision and taken_away(conn, s):
        return "closed", revision
    return "installed" if revision in phases.chain() or revision is None else "newer", revision


def _applies(conn: psycopg.Connection[Any], s: Settings, check: Check, state: State) -> bool:
    """Whether there is anything to ask about."""
    if state in ("absent", "quarantine", "closed"):
        return check.needs is None and state != "absent"
    return check.needs != "enforced" or (present.enforced(conn, s) and s.host_rls != "off")


def _asked(conn: psycopg.Connection[Any], s: Settings, check: Check, state: State) -> list[Symptom] | NotJudged:
    """The findings of one check, in a savepoint of its own."""
    if state == "newer" and check.needs == "text":
        return NotJudged(check.name, check.level, "a newer version of leadprotect was installed: ask that one")
    try:
        with conn.transaction():
            return [_finding(check, fault) for fault in check.ask(conn, s)]
    except (psycopg.OperationalError, LockUnavailable):
        if conn.closed:
            raise
        conn.execute(_NO_MORE_PATIENCE)
        return NotJudged(check.name, check.level, "a lock was not to be had in time")
    except (LeadProtectError, psycopg.Error) as error:
        said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        return NotJudged(check.name, check.level, (said or str(error)).splitlines()[0])


def _finding(check: Check, fault: Fault) -> Symptom:
    return Symptom(check.name, fault.level or check.level, fault.where, fault.what, check.why, fault.mends)


def _verdict(
    state: State, findings: list[Symptom], not_judged: list[NotJudged]
) -> Literal["sound", "danger", "not judged"]:
    if any(found.level == "danger" for found in findings):
        return "danger"
    return "not judged" if state == "absent" or any(one.level == "danger" for one in not_judged) else "sound"
