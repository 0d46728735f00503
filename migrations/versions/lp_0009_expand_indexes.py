"""What a backfill reads: an index on leads and one on each table of activities, who an owner is by them, who lacks one.

Why: the backfill walks leads by (territory, id) and probes the newest qualifying activity of each;
without the indexes it would read whole tables. They serve the transition only, contract drops them. The
triggers of the transition make owners by the same functions, and note the leads that a backfill has to read again.

Locks on host tables: SHARE UPDATE EXCLUSIVE on leads, then on activities, for the time of each
build (CONCURRENTLY: reads and writes go on), or on both at once where the tables are large and the server has
workers for two. It waits for older transactions, and nobody waits for it but DDL and VACUUM. The same for the way down.

Undone by: DROP INDEX CONCURRENTLY, and dropping the functions; the notes move to the quarantine schema.
"""

from __future__ import annotations

from contextlib import nullcontext
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple, cast

from alembic import context, op
from alembic.util import CommandError
from sqlalchemy import text

from leadprotect.settings import activity_sources, load, names, render, sql

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from leadprotect.settings import SourceTable

revision = "lp_0009_expand_indexes"
down_revision = "lp_0008_expand_rules"
branch_labels = None
depends_on = None
phase = "expand"
locks = {
    "upgrade": {"leads": "ShareUpdateExclusiveLock", "activities": "ShareUpdateExclusiveLock"},
    "downgrade": {"leads": "ShareUpdateExclusiveLock", "activities": "ShareUpdateExclusiveLock"},
}


def upgrade() -> None:
    require_transactions()
    refuse_partitions()
    with op.get_context().autocommit_block():
        wait_for_long_transactions()
        refuse_strangers()
        with leads_index():
            for source in activity_sources():
                create_activities_index(source)
    # after what is built outside of a transaction: an interrupted build is taken up again from its begin
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_activity_order()
    create_transition_check()
    create_unsettled()
    op.execute(sql("GRANT CREATE ON SCHEMA {schema} TO {reader}"))
    op.execute(sql("SET LOCAL ROLE {reader}"))
    create_derived_owners()
    create_unowned_leads()
    create_stale_leads()
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("REVOKE CREATE ON SCHEMA {schema} FROM {reader}"))
    op.execute("RESET ROLE")


def downgrade() -> None:
    require_transactions()
    with op.get_context().autocommit_block():
        wait_for_long_transactions()
        for source in activity_sources():
            drop(source)
        op.execute(sql("DROP INDEX CONCURRENTLY IF EXISTS {leads_index_path}"))
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        DROP FUNCTION
          {schema}.backfill_stale(text),
          {schema}.unowned_leads(text),
          {schema}.unowned_leads(text[]),
          {schema}.probed_leads(text[]),
          {schema}.few_are_bare(),
          {schema}.bare_leads(text[]),
          {schema}.sources_indexed(),
          {schema}.derived_owners({lead_id_type}[]),
          {schema}.note_unsettled({lead_id_type}),
          {schema}.in_transition(),
          {schema}.earlier_activity(text, text, text)
        """)
    )
    op.execute(
        sql("""
        REVOKE ALL ON {schema}.unsettled_leads FROM {reader};
        ALTER TABLE {schema}.unsettled_leads SET SCHEMA {quarantine}
        """)
    )
    op.execute("RESET ROLE")


def require_transactions() -> None:
    # Indexes are built outside of a transaction: one transaction for all would be committed halfway.
    if not op.get_context().opts.get("transaction_per_migration"):
        raise CommandError(
            "leadprotect's revisions need a transaction each, and this env.py makes one for all; nothing was touched. "
            "Write transaction_per_migration=True into the calls of context.configure() in your env.py"
        )


def refuse_partitions() -> None:
    # A script is written without the database, and can't name the partitions that an index needs one by one.
    if op.get_context().as_sql:
        op.execute(sql("{refuse_partitions}"))


def wait_for_long_transactions() -> None:
    # Nobody queues behind a CONCURRENTLY build but DDL: it may wait as long as env.py's budget lasts,
    # or without end where no env.py sets one.
    op.execute(
        "SELECT pg_catalog.set_config('lock_timeout', "
        "coalesce(nullif(pg_catalog.current_setting('leadprotect.lock_budget', true), ''), '0'), false)"
    )
    op.execute("SET statement_timeout = 0")


def leads_index() -> AbstractContextManager[None]:
    # Keyset of the backfill.
    if is_valid("leads_index_path"):
        return nullcontext()
    op.execute(sql("DROP INDEX CONCURRENTLY IF EXISTS {leads_index_path}"))
    return beside("CREATE INDEX CONCURRENTLY {leads_index} ON {leads} ({territory_key}, {lead_id})")


def create_activities_index(source: SourceTable) -> None:
    # The newest qualifying activity of a lead is the first entry; the user comes from the index. Its comment
    # says for which settings it was built.
    if is_valid(source.key("source_index_path"), source.key("source_shape_name")):
        return
    drop(source)
    build(source)


def beside(statement: str) -> AbstractContextManager[None]:
    """Carry it out: while the block lasts, where our env.py and the server have room for two builds, else before it."""
    known = names(settings := load(context.config))
    tables = [known[key] for key in ("leads", *(source.key("source_table") for source in activity_sources()))]
    room = op.get_context().opts.get("leadprotect_beside")
    # whoever builds beside an index on an expression waits for it, and his locks have a budget
    if room and not settings.territory_expression and (block := room(render(statement, settings), tables)):
        return cast("AbstractContextManager[None]", block)
    op.execute(sql(statement))
    return nullcontext()


def build(source: SourceTable) -> None:
    # No index of a partitioned table is built CONCURRENTLY: that of each leaf is, then they are put together.
    parts = partitions(source)
    if not parts:
        op.execute(sql(source.fill("CREATE INDEX CONCURRENTLY {source_index} ON {source_table} {source_shape}")))
        op.execute(sql(source.fill("COMMENT ON INDEX {source_index_path} IS {source_shape_name}")))
        return
    for part in parts:
        if part.leaf:
            op.execute(sql(source.fill(f"CREATE INDEX CONCURRENTLY {part.index_name} ON {part.name} {{source_shape}}")))
    # writers would wait behind what follows, so it must not wait itself; env.py tries again
    op.execute("SET lock_timeout = '100ms'")
    for part in reversed(parts):
        if not part.leaf:
            op.execute(sql(source.fill(f"CREATE INDEX {part.index_name} ON ONLY {part.name} {{source_shape}}")))
    for part in parts[:-1]:
        op.execute(sql(f"ALTER INDEX {part.above} ATTACH PARTITION {part.path}"))
    op.execute(sql(source.fill("COMMENT ON INDEX {source_index_path} IS {source_shape_name}")))
    wait_for_long_transactions()


def drop(source: SourceTable) -> None:
    # Of a partitioned table the whole goes with its root; what an interrupted build left stands alone.
    parts = partitions(source)
    if parts:
        op.execute("SET lock_timeout = '100ms'")
        for part in reversed(parts):
            op.execute(sql(f"DROP INDEX IF EXISTS {part.path}"))
        wait_for_long_transactions()
    else:
        if op.get_context().as_sql:
            # a script is written without the database: one that is partitioned has no index to drop CONCURRENTLY
            op.execute(
                sql(
                    source.fill("""
                    DO $do$
                    BEGIN
                      IF EXISTS (
                        SELECT FROM pg_catalog.pg_class AS c
                        WHERE c.oid = pg_catalog.to_regclass('{source_index_path}') AND c.relkind = 'I')
                      THEN
                        DROP INDEX {source_index_path};
                      END IF;
                    END
                    $do$
                    """)
                )
            )
        op.execute(sql(source.fill("DROP INDEX CONCURRENTLY IF EXISTS {source_index_path}")))


class Part(NamedTuple):
    """A partition of a table of activities, quoted: `index_name` is its index without, `path` with its schema."""

    name: str
    leaf: bool
    index_name: str
    path: str
    above: str | None


def partitions(source: SourceTable) -> list[Part]:
    """The partitions of a table of activities, the leaves first, itself the last; empty for a plain table."""
    if op.get_context().as_sql:
        return []
    known = names(load(context.config))
    query = """
        SELECT t.relid::regclass::text, t.isleaf, pg_catalog.quote_ident(n.nspname), t.parentrelid::regclass::text
        FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass(:host)) AS t
        JOIN pg_catalog.pg_class AS c ON c.oid = t.relid JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE EXISTS (SELECT FROM pg_catalog.pg_class AS p WHERE p.oid = pg_catalog.to_regclass(:host) AND p.relkind = 'p')
        ORDER BY t.level DESC, t.relid
        """
    found = op.get_bind().execute(text(query), {"host": known[source.key("source_table")]}).fetchall()
    root, ours = known[source.key("source_index")], known["schema"][1:-1]
    called = {
        name: root if above is None else f'"ix_{ours}_{sha256((root + name).encode()).hexdigest()[:16]}"'
        for name, _, _, above in found
    }
    paths = {name: f"{schema}.{called[name]}" for name, _, schema, _ in found}
    return [Part(name, leaf, called[name], paths[name], paths.get(above)) for name, leaf, _, above in found]


def refuse_strangers() -> None:
    # What a cancelled build left is on our table and our columns; any other index of the name is the
    # host's, and neither dropped nor taken for ours.
    op.execute(
        sql("""
        DO $do$
        DECLARE
          stranger text;
        BEGIN
          SELECT ours.path INTO stranger
          FROM (VALUES ('{leads_index_path}', {leads_name}, true, ARRAY[{territory_key_name}, {lead_id_column_name}]){source_index_shapes}) AS ours (path, host, whole, columns)
          WHERE pg_catalog.to_regclass(ours.path) IS NOT NULL AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_index AS i
            WHERE i.indexrelid = pg_catalog.to_regclass(ours.path) AND i.indrelid = pg_catalog.to_regclass(ours.host)
              AND NOT i.indisunique AND (i.indpred IS NULL) = ours.whole
              AND ours.columns = ARRAY(
                SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k (number, place)
                LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
                ORDER BY k.place))
          LIMIT 1;
          IF stranger IS NOT NULL THEN
            RAISE EXCEPTION '% exists and is not the index of leadprotect: rename it', stranger
              USING ERRCODE = 'duplicate_table';
          END IF;
        END
        $do$
        """)
    )


def is_valid(index: str, built_for: str | None = None) -> bool:
    """Whether the index stands already, for these settings: a cancelled build leaves an invalid one, to be rebuilt."""
    if context.is_offline_mode():
        return False
    known = names(load(context.config))
    query = """
        SELECT i.indisvalid AND (CAST(:said AS text) IS NULL OR pg_catalog.obj_description(i.indexrelid, 'pg_class') = :said)
        FROM pg_catalog.pg_index AS i WHERE i.indexrelid = pg_catalog.to_regclass(:path)
        """
    said = known[built_for][1:-1].replace("''", "'") if built_for else None
    return bool(op.get_bind().scalar(text(query), {"path": known[index], "said": said}))


def create_activity_order() -> None:
    # Of two activities at one time the higher id wins, in the order of its own type.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.earlier_activity(of_source text, one text, other text)
        RETURNS boolean
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          {compare_activities}
          RETURN one < other;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.earlier_activity(text, text, text) IS
        'Whether the first of two activities of one table and time is the lower one';
        REVOKE ALL ON FUNCTION {schema}.earlier_activity(text, text, text) FROM PUBLIC
        """)
    )


def create_transition_check() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.in_transition()
        RETURNS boolean
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN EXISTS (
            SELECT FROM pg_trigger AS t
            JOIN (VALUES {source_triggers}) AS s (function, host, name) ON t.tgrelid = s.host AND t.tgname = s.name);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.in_transition() IS
        'Whether activities make owners: from expand to contract; afterwards owners change by hand only';
        REVOKE ALL ON FUNCTION {schema}.in_transition() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.in_transition() TO {reader}
        """)
    )


def create_unsettled() -> None:
    # A trigger can't see the uncommitted assignment of a backfill's slice, and the slice can't see
    # the uncommitted change that fired the trigger. The note outlives both, and the backfill ends by
    # looking at the noted leads again. Append-only, so that nobody waits here; after the backfill
    # nothing is noted.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.unsettled_leads') IS NOT NULL THEN
            ALTER TABLE {quarantine}.unsettled_leads SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.unsettled_leads (
              id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
              lead_id {lead_id_type} NOT NULL
            );
          END IF;
        END
        $do$;
        COMMENT ON TABLE {schema}.unsettled_leads IS
        'Leads that changed while a backfill may have read them: it looks at them again at its end';
        COMMENT ON COLUMN {schema}.unsettled_leads.id IS 'no meaning: notes of one lead may be several';
        COMMENT ON COLUMN {schema}.unsettled_leads.lead_id IS 'the lead';
        ALTER TABLE {schema}.unsettled_leads ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.unsettled_leads FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.unsettled_leads;
        CREATE POLICY lp_inside ON {schema}.unsettled_leads TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        GRANT SELECT ON {schema}.unsettled_leads TO {reader}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.note_unsettled(lead {lead_id_type})
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          -- the jobs come with a later revision; before it, every backfill is still to come
          IF to_regclass('{schema}.backfill_jobs') IS NOT NULL THEN
            IF NOT EXISTS (SELECT FROM {schema}.backfill_jobs AS j WHERE j.ended_at IS NULL) THEN
              RETURN;
            END IF;
            -- nor after contract, when activities make no owners any more
            IF NOT {schema}.in_transition() THEN
              RETURN;
            END IF;
          END IF;
          INSERT INTO {schema}.unsettled_leads (lead_id) VALUES (lead);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.note_unsettled({lead_id_type}) IS
        'Notes a lead that changed while a backfill may have read it; nothing where no backfill runs';
        REVOKE ALL ON FUNCTION {schema}.note_unsettled({lead_id_type}) FROM PUBLIC
        """)
    )


def create_derived_owners() -> None:
    # What makes an owner is said once, in the settings' terms: the newest qualifying activity with a user,
    # of all tables of activities. One in the future makes none until its time has come.
    # Plans are pinned to index probes, LIMIT 1 keeps a lookup inside its loop: statistics of a table
    # that is being filled are always wrong. Kinds are literals so that the partial index serves. A column
    # goes before a variable of its name: a condition of the host names columns as it likes.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.derived_owners(leads {lead_id_type}[])
        RETURNS TABLE (
          lead_id {lead_id_type}, user_id {user_id_type}, activity_at {schema}.user_lead_assignments.activity_at%TYPE,
          activity_id {schema}.user_lead_assignments.activity_id%TYPE, activity_source text)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET plan_cache_mode = force_generic_plan
        SET enable_seqscan = off
        SET enable_bitmapscan = off
        SET enable_hashjoin = off
        SET enable_mergejoin = off
        SET jit = off
        AS $body$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          {derived_owners};
        END
        $body$;
        COMMENT ON FUNCTION {schema}.derived_owners({lead_id_type}[]) IS
        'For each lead its newest qualifying activity, which makes the owner; no row: there is none';
        REVOKE ALL ON FUNCTION {schema}.derived_owners({lead_id_type}[]) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.derived_owners({lead_id_type}[]) TO {owner}
        """)
    )


def create_unowned_leads() -> None:
    # The truth about the backfill, asked by its own verification and by the gate. Released leads have an
    # assignment, to nobody: they are not listed.
    # Contract asks it again when the transition's indexes are gone, perhaps of a host that has no index
    # on the leads of activities: one scan of each table for all territories, whatever the statistics of a fresh one say.
    # While they stand, what a walk has left are few leads, mostly without any activity: these are looked up in the order
    # of the index. What our policies let pass is a guess to the planner, so it is told which join to take, and that the
    # workers give few rows back.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.sources_indexed()
        RETURNS boolean
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN NOT EXISTS (
            SELECT FROM unnest(ARRAY[{source_indexes}]::text[]) AS wanted (path)
            LEFT JOIN pg_index AS i ON i.indexrelid = to_regclass(wanted.path) WHERE i.indisvalid IS NOT TRUE);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.sources_indexed() IS
        'Whether every index of the transition on activities stands';
        REVOKE ALL ON FUNCTION {schema}.sources_indexed() FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.bare_leads(territories text[])
        RETURNS TABLE (territory text, lead_id {lead_id_type}, released boolean)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        SET enable_nestloop = off
        SET enable_mergejoin = off
        SET parallel_tuple_cost = 0
        AS $body$
        #variable_conflict use_column
        BEGIN
          IF territories = '{}' THEN
            RETURN;
          END IF;
          RETURN QUERY
          SELECT {territory_of_l}::text, l.{lead_id}::{lead_id_type}, a.lead_id IS NOT NULL
          FROM {leads} AS l
          LEFT JOIN {schema}.user_lead_assignments AS a ON a.lead_id = l.{lead_id} AND a.territory = {territory_of_l}
          WHERE {territory_of_l} = ANY (bare_leads.territories) AND a.user_id IS NULL;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.bare_leads(text[]) IS
        'Leads of the territories without an owner, whatever their activities; released: by hand, or where a lead moved here';
        REVOKE ALL ON FUNCTION {schema}.bare_leads(text[]) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.few_are_bare()
        RETURNS boolean
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          RETURN {schema}.sources_indexed() AND NOT EXISTS (SELECT FROM {schema}.backfill_jobs AS j WHERE j.ended_at IS NULL);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.few_are_bare() IS 'Whether every walk has ended, and an index tells of a lead''s activities';
        REVOKE ALL ON FUNCTION {schema}.few_are_bare() FROM PUBLIC;
        CREATE FUNCTION {schema}.probed_leads(territories text[])
        RETURNS TABLE (territory text, lead_id {lead_id_type}, missing boolean)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          -- no EXISTS: it could become a scan, and a hash of all activities
          SELECT b.territory, b.lead_id,
                 NOT b.released AND (SELECT true FROM {qualifying} AS q WHERE q.lead_id = b.lead_id LIMIT 1) IS NOT NULL
          FROM (SELECT * FROM {schema}.bare_leads(probed_leads.territories) AS b ORDER BY b.lead_id) AS b;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.probed_leads(text[]) IS
        'Leads of the territories without an owner; missing: one whom an activity makes';
        REVOKE ALL ON FUNCTION {schema}.probed_leads(text[]) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.unowned_leads(territories text[])
        RETURNS TABLE (territory text, lead_id {lead_id_type})
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_nestloop = off
        SET jit = off
        AS $body$
        #variable_conflict use_column
        BEGIN
          IF {schema}.few_are_bare() THEN
            RETURN QUERY SELECT p.territory, p.lead_id FROM {schema}.probed_leads(unowned_leads.territories) AS p WHERE p.missing;
            RETURN;
          END IF;
          RETURN QUERY
          SELECT {territory_of_l}::text, l.{lead_id}::{lead_id_type}
          FROM {leads} AS l
          WHERE {territory_of_l} = ANY (unowned_leads.territories)
            AND NOT EXISTS (
              SELECT FROM {schema}.user_lead_assignments AS a
              WHERE a.lead_id = l.{lead_id} AND a.territory = {territory_of_l})
            AND EXISTS (
              SELECT FROM {qualifying} AS q WHERE q.lead_id = l.{lead_id});
        END
        $body$;
        COMMENT ON FUNCTION {schema}.unowned_leads(text[]) IS
        'Leads of the territories with a qualifying activity, without an owner, and not released by hand';
        REVOKE ALL ON FUNCTION {schema}.unowned_leads(text[]) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.unowned_leads(text[]) TO {owner}, {operator}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.unowned_leads(territory text)
        RETURNS SETOF {lead_id_type}
        LANGUAGE sql
        STABLE
        BEGIN ATOMIC
          SELECT u.lead_id FROM {schema}.unowned_leads(ARRAY[unowned_leads.territory]) AS u;
        END;
        COMMENT ON FUNCTION {schema}.unowned_leads(text) IS
        'Leads of the territory with a qualifying activity, without an owner, and not released by hand';
        REVOKE ALL ON FUNCTION {schema}.unowned_leads(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.unowned_leads(text) TO {owner}, {operator}
        """)
    )


def create_stale_leads() -> None:
    # An owner whose last activity was deleted stays, so a lead without any activity is never stale.
    # The plan is pinned: one index probe a lead, whatever the statistics of a fresh table say.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.backfill_stale(here text)
        RETURNS SETOF {lead_id_type}
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        SET enable_hashjoin = off
        SET enable_mergejoin = off
        AS $body$
        #variable_conflict use_column
        BEGIN
          RETURN QUERY
          SELECT wanted.lead_id
          FROM {schema}.user_lead_assignments AS wanted
          JOIN {leads} AS l ON l.{lead_id} = wanted.lead_id AND {territory_of_l} = backfill_stale.here,
            LATERAL {derived_owner} AS newest
          WHERE wanted.territory = backfill_stale.here AND (
            wanted.source IN ('backfill', 'activity')
              AND (wanted.activity_id IS DISTINCT FROM newest.id OR wanted.user_id IS DISTINCT FROM newest.user_id
                OR wanted.activity_source IS DISTINCT FROM newest.source)
            -- a lead that moved here: only what came since counts
            OR wanted.source = 'moved'
              AND (wanted.activity_at IS NULL AND newest.at IS NOT NULL OR wanted.activity_at < newest.at));
        END
        $body$;
        COMMENT ON FUNCTION {schema}.backfill_stale(text) IS
        'Leads of the territory whose derived owner is not the user of the newest qualifying activity';
        REVOKE ALL ON FUNCTION {schema}.backfill_stale(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.backfill_stale(text) TO {owner}, {operator}
        """)
    )
