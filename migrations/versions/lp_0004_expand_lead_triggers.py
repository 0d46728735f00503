"""Triggers on leads for the transition, and the notes on writes without a context.

Why: between expand and contract the old and the new version of the application run side by side.
A lead that changes its territory gets its owner there; a deleted lead takes its assignments along;
and contract must know whether anybody still writes without saying who he is.

Locks on host tables: SHARE ROW EXCLUSIVE on leads, for milliseconds (CREATE TRIGGER). On the way
down ACCESS EXCLUSIVE on leads, for milliseconds (DROP TRIGGER).

Undone by: dropping the triggers; the notes move to the quarantine schema.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0004_expand_lead_triggers"
down_revision = "lp_0003_expand_indexes"
branch_labels = None
depends_on = None
phase = "expand"
locks = {"upgrade": {"leads": "ShareRowExclusiveLock"}, "downgrade": {"leads": "AccessExclusiveLock"}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_notes()
    create_unsettled()
    create_note_function()
    create_owner_of_moved_lead()
    create_forget_function()
    op.execute("RESET ROLE")
    create_triggers()


def downgrade() -> None:
    op.execute(sql("DROP TRIGGER {forget} ON {leads}"))
    op.execute(sql("DROP TRIGGER {transition_territory} ON {leads}"))
    op.execute(sql("DROP TRIGGER {note_writes} ON {leads}"))
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("DROP FUNCTION {schema}.forget_lead()"))
    op.execute(sql("DROP FUNCTION {schema}.own_moved_lead()"))
    op.execute(sql("DROP FUNCTION {schema}.note_contextless_write()"))
    op.execute(sql("DROP FUNCTION {schema}.note_unsettled({lead_id_type})"))
    op.execute(sql("ALTER TABLE {schema}.unsettled_leads SET SCHEMA {quarantine}"))
    op.execute(sql("ALTER TABLE {schema}.contextless_writes SET SCHEMA {quarantine}"))
    op.execute("RESET ROLE")


def create_notes() -> None:
    # Append-only and without a unique key: writers of the host must never wait for each other here.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.contextless_writes') IS NOT NULL THEN
            ALTER TABLE {quarantine}.contextless_writes SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.contextless_writes (
              id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
              login name NOT NULL DEFAULT session_user,
              at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
              host_table text NOT NULL,
              with_context boolean NOT NULL
            );
            CREATE INDEX ix_contextless_writes_login ON {schema}.contextless_writes (login, at);
          END IF;
        END
        $do$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON TABLE {schema}.contextless_writes IS
        'Writes to the host''s tables without a context, or by a login that owns them: one note per login and minute'
        """)
    )
    op.execute(sql("SELECT {schema}.secure_table('{schema}.contextless_writes')"))


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
        $do$
        """)
    )
    op.execute(
        sql("""
        COMMENT ON TABLE {schema}.unsettled_leads IS
        'Leads that changed while a backfill may have read them: it looks at them again at its end'
        """)
    )
    op.execute(sql("SELECT {schema}.secure_table('{schema}.unsettled_leads')"))
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
            IF NOT EXISTS (
              SELECT FROM pg_trigger AS t
              WHERE t.tgrelid = {activities_name}::regclass AND '"' || t.tgname || '"' = '{transition}') THEN
              RETURN;
            END IF;
          END IF;
          INSERT INTO {schema}.unsettled_leads (lead_id) VALUES (lead);
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.note_unsettled({lead_id_type}) FROM PUBLIC"))


def create_note_function() -> None:
    # Row security does not bind who owns the table: his writes are noted with a context, too, because
    # contract protects nothing while a service logs in as the owner.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.note_contextless_write()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          declared boolean := {schema}.parse_user(current_setting({user_guc}, true)) IS NOT NULL
            AND coalesce(current_setting({territory_guc}, true), '') <> '';
        BEGIN
          IF declared AND NOT pg_has_role(
            session_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = {leads_name}::regclass), 'MEMBER')
          THEN
            RETURN NULL;
          END IF;
          IF NOT EXISTS (
            SELECT FROM {schema}.contextless_writes AS w
            WHERE w.login = session_user AND w.with_context = declared
              AND w.at > clock_timestamp() - {note_interval})
          THEN
            INSERT INTO {schema}.contextless_writes (host_table, with_context)
            VALUES (TG_RELID::regclass::text, declared);
          END IF;
          RETURN NULL;
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.note_contextless_write() FROM PUBLIC"))


def create_owner_of_moved_lead() -> None:
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.own_moved_lead()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          INSERT INTO {schema}.user_lead_assignments AS a
            (lead_id, territory, user_id, source, activity_at, activity_id)
          SELECT NEW.{lead_id}, t.code, newest.{activity_user_id}, 'activity',
                 newest.{activity_at}, newest.{activity_id}
          FROM {schema}.territories AS t,
            LATERAL (
              SELECT v.{activity_user_id}, v.{activity_at}, v.{activity_id} FROM {activities} AS v
              WHERE v.{activity_lead_id} = NEW.{lead_id}
                AND v.{activity_kind} IN ({kinds}) AND v.{activity_user_id} IS NOT NULL
              ORDER BY v.{activity_at} DESC NULLS LAST, v.{activity_id} DESC LIMIT 1) AS newest
          WHERE t.code = NEW.{territory}
          ON CONFLICT (lead_id, territory) DO UPDATE
            SET user_id = excluded.user_id, source = excluded.source, assigned_at = excluded.assigned_at,
                activity_at = excluded.activity_at, activity_id = excluded.activity_id
            WHERE a.source IN ('backfill', 'activity')
              AND (a.activity_at IS NULL AND excluded.activity_at IS NOT NULL
                OR a.activity_at < excluded.activity_at
                OR a.activity_at IS NOT DISTINCT FROM excluded.activity_at
                   AND a.activity_id < excluded.activity_id);
          RETURN NULL;
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.own_moved_lead() FROM PUBLIC"))


def create_forget_function() -> None:
    # A new lead with the id of a deleted one must not inherit its owner. The audit stays.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.forget_lead()
        RETURNS trigger
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        BEGIN
          DELETE FROM {schema}.user_lead_assignments AS a WHERE a.lead_id = OLD.{lead_id};
          PERFORM {schema}.note_unsettled(OLD.{lead_id});
          RETURN NULL;
        END
        $body$
        """)
    )
    op.execute(sql("REVOKE ALL ON FUNCTION {schema}.forget_lead() FROM PUBLIC"))


def create_triggers() -> None:
    op.execute(
        sql("""
        CREATE TRIGGER {note_writes} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {leads}
        FOR EACH STATEMENT EXECUTE FUNCTION {schema}.note_contextless_write()
        """)
    )
    op.execute(
        sql("""
        CREATE TRIGGER {transition_territory} AFTER UPDATE OF {territory} ON {leads}
        FOR EACH ROW WHEN (OLD.{territory} IS DISTINCT FROM NEW.{territory})
        EXECUTE FUNCTION {schema}.own_moved_lead()
        """)
    )
    op.execute(
        sql("""
        CREATE TRIGGER {forget} AFTER DELETE ON {leads}
        FOR EACH ROW EXECUTE FUNCTION {schema}.forget_lead()
        """)
    )
