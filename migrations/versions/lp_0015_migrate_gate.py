"""The gate that contract waits for.

Why: nothing is enforced while somebody would be locked out, or while rows could be read past it. The
data and the catalog are asked, by one function for `alembic upgrade head`, `leadprotect status` and the
contract revisions themselves.

Locks on host tables: none beyond ACCESS SHARE, which every SELECT takes.

Undone by: moving what was accepted to the quarantine schema and dropping the functions.
"""

from alembic import op

from leadprotect.settings import sql

revision = "lp_0015_migrate_gate"
down_revision = "lp_0014_migrate_ways"
branch_labels = None
depends_on = None
phase = "migrate"
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    create_acceptances()
    create_shadow_condition()
    leave_quarantine()
    create_requirement()
    op.execute(sql("GRANT CREATE ON SCHEMA {schema} TO {reader}"))
    op.execute(sql("SET LOCAL ROLE {reader}"))
    create_tolerance()
    create_granting()
    create_shell_word()
    create_gate()
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(sql("REVOKE CREATE ON SCHEMA {schema} FROM {reader}"))
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("CREATE SCHEMA IF NOT EXISTS {quarantine} AUTHORIZATION {owner}"))
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute(
        sql("""
        DROP FUNCTION
          {schema}.require_open_gate(interval, text, name[], text[]),
          {schema}.gate_conditions(interval, text, name[], text[]),
          {schema}.tolerated(text, bigint, bigint, text),
          {schema}.shell_word(text),
          {schema}.granting(name),
          {schema}.accept_condition(text, numeric),
          {schema}.accepted_share(text),
          {schema}.shadow_condition(interval, name[])
        """)
    )
    op.execute(
        sql("""
        REVOKE ALL ON {schema}.accepted_conditions FROM {reader}, {operator};
        ALTER TABLE {schema}.accepted_conditions SET SCHEMA {quarantine}
        """)
    )
    op.execute("RESET ROLE")


def create_acceptances() -> None:
    # What a person answers for, by name and value: nobody else opens such a condition, and the row tells who did.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regclass('{quarantine}.accepted_conditions') IS NOT NULL THEN
            ALTER TABLE {quarantine}.accepted_conditions SET SCHEMA {schema};
          ELSE
            CREATE TABLE {schema}.accepted_conditions (
              condition text NOT NULL,
              accepted_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
              accepted_by name NOT NULL DEFAULT session_user,
              share numeric NOT NULL,
              CONSTRAINT ac_share CHECK (share BETWEEN 0 AND 1),
              PRIMARY KEY (condition, accepted_at)
            );
          END IF;
        END
        $do$;
        COMMENT ON TABLE {schema}.accepted_conditions IS
        'What a person accepted of the gate of contract, by alembic -x accept=NAME:SHARE; the newest row of a condition counts';
        COMMENT ON COLUMN {schema}.accepted_conditions.condition IS 'the condition: unowned, unprotected, host_code, owner_column_code, lead_tables_keys, lead_tables_code or shadow';
        COMMENT ON COLUMN {schema}.accepted_conditions.accepted_at IS 'when';
        COMMENT ON COLUMN {schema}.accepted_conditions.accepted_by IS 'the login that migrated';
        COMMENT ON COLUMN {schema}.accepted_conditions.share IS 'the share of the leads up to which it holds, 0 to 1';
        ALTER TABLE {schema}.accepted_conditions ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {schema}.accepted_conditions FORCE ROW LEVEL SECURITY;
        DROP POLICY IF EXISTS lp_inside ON {schema}.accepted_conditions;
        CREATE POLICY lp_inside ON {schema}.accepted_conditions TO {owner}, {reader} USING ({inside}) WITH CHECK ({inside});
        DROP POLICY IF EXISTS lp_operator ON {schema}.accepted_conditions;
        CREATE POLICY lp_operator ON {schema}.accepted_conditions FOR SELECT TO {operator} USING (true);
        GRANT SELECT ON {schema}.accepted_conditions TO {reader}, {operator}
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.accept_condition(condition text, share numeric)
        RETURNS void
        LANGUAGE plpgsql
        SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        AS $body$
        BEGIN
          IF condition IS NULL OR condition NOT IN ('unowned', 'unprotected', 'host_code', 'owner_column_code', 'lead_tables_keys', 'lead_tables_code', 'shadow') THEN
            RAISE EXCEPTION '% is no condition that can be accepted: unowned, unprotected, host_code, owner_column_code, lead_tables_keys, lead_tables_code and shadow are', coalesce(condition, 'NULL')
              USING ERRCODE = 'LP422';
          ELSIF share IS NULL OR share NOT BETWEEN 0 AND 1 THEN
            RAISE EXCEPTION 'a share is between 0 and 1' USING ERRCODE = 'LP422';
          END IF;
          IF {schema}.accepted_share(condition) IS DISTINCT FROM share THEN
            INSERT INTO {schema}.accepted_conditions (condition, share) VALUES (accept_condition.condition, accept_condition.share);
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.accept_condition(text, numeric) IS
        'Accepts a condition of the gate up to a share of the leads, for whoever migrates';
        REVOKE ALL ON FUNCTION {schema}.accept_condition(text, numeric) FROM PUBLIC
        """)
    )
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.accepted_share(condition text)
        RETURNS numeric
        LANGUAGE sql
        STABLE
        BEGIN ATOMIC
          SELECT a.share FROM {schema}.accepted_conditions AS a
          WHERE a.condition = accepted_share.condition ORDER BY a.accepted_at DESC LIMIT 1;
        END;
        COMMENT ON FUNCTION {schema}.accepted_share(text) IS
        'The share of the leads up to which a condition was accepted; NULL where it was not';
        REVOKE ALL ON FUNCTION {schema}.accepted_share(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.accepted_share(text) TO {reader}
        """)
    )


def create_shadow_condition() -> None:
    # Who edits what another one owns is denied because that is meant. Whom contract would deny whatever he asks for is
    # what somebody has to look at; a window of 0 looks back to the start.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.shadow_condition(observation_window interval, exempt_roles name[])
        RETURNS TABLE (condition text, met boolean, detail text, remedy text)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        DECLARE
          started timestamptz := (SELECT max(r.started_at) FROM {schema}.shadow_runs AS r);
        BEGIN
          IF started IS NULL THEN
            RETURN;
          END IF;
          condition := 'shadow';
          SELECT count(*) = 0 OR {schema}.accepted_share('shadow') IS NOT NULL,
                 coalesce(string_agg(format('login %I would have been denied %s (%s)', denied.login, denied.kinds, denied.reasons), ', '
                            ORDER BY denied.login) || CASE WHEN {schema}.accepted_share('shadow') IS NOT NULL THEN '; accepted' ELSE '' END,
                          format('since %s the shadow saw no login that contract would lock out',
                            to_char(started AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))),
                 'see leadprotect shadow report, and begin anew when that is mended: leadprotect shadow stop, leadprotect shadow start; '
                   'or answer for it: alembic -x accept=shadow:1 upgrade head'
          INTO met, detail, remedy
          FROM (
            SELECT n.login, string_agg(DISTINCT n.kind, ', ') AS kinds, string_agg(DISTINCT n.reason, ', ') AS reasons
            FROM {schema}.shadow_notes AS n
            WHERE n.reason NOT IN ('read', 'owner', 'not_owner', 'unassigned', 'suspended', 'not_manager') AND n.last_at >= started
              AND (observation_window = interval '0' OR n.last_at > clock_timestamp() - observation_window)
              AND n.login <> ALL (exempt_roles) AND n.role <> ALL (exempt_roles)
            GROUP BY n.login ORDER BY n.login LIMIT 20) AS denied;
          IF met THEN
            remedy := NULL;
          END IF;
          RETURN NEXT;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.shadow_condition(interval, name[]) IS
        'The condition of the gate about a shadow: whom contract would lock out by what was noted; no row where none was started';
        REVOKE ALL ON FUNCTION {schema}.shadow_condition(interval, name[]) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.shadow_condition(interval, name[]) TO {reader}
        """)
    )


def create_tolerance() -> None:
    # Half of the leads is where a host is rather set up wrongly than peculiar; of a handful nothing can be said.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.tolerated(condition text, several bigint, leads bigint, what text)
        RETURNS TABLE (met boolean, detail text, remedy text)
        LANGUAGE plpgsql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
        #variable_conflict use_variable
        DECLARE
          share numeric := CASE WHEN leads = 0 THEN 0 ELSE round(ceil(100.0 * several / leads) / 100, 2) END;
          accepted numeric := {schema}.accepted_share(condition);
        BEGIN
          met := leads < 20 OR share <= coalesce(accepted, 0.5);
          detail := format('%s of %s leads %s', several, leads, what)
            || CASE WHEN accepted IS NOT NULL THEN format('; accepted up to a share of %s', accepted) ELSE '' END;
          remedy := CASE WHEN NOT met THEN format(
            'see that the settings are those of this host, or answer for it: alembic -x accept=%s:%s upgrade head', condition, share) END;
          RETURN NEXT;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.tolerated(text, bigint, bigint, text) IS
        'Whether so many leads of so many are few enough, by half of them or by what a person accepted';
        REVOKE ALL ON FUNCTION {schema}.tolerated(text, bigint, bigint, text) FROM PUBLIC
        """)
    )


def create_granting() -> None:
    # Which territory a login serves, only its owner knows: the others are named beside the first. Who was created
    # NOINHERIT, and who made our roles, would inherit nothing by a plain GRANT, and the gate would stay closed.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.granting(member name)
        RETURNS text
        LANGUAGE sql
        STABLE
        SET search_path = pg_catalog, pg_temp
        AS $body$
          SELECT format('GRANT %I, %I%s TO %I%s;', {app_name}, t.roles[1],
                        ' /* or ' || nullif(array_to_string(t.roles[2:], ', '), '') || ' */', m.rolname,
                        CASE WHEN m.rolinherit AND NOT EXISTS (
                               SELECT FROM pg_auth_members AS g JOIN pg_roles AS r ON r.oid = g.roleid
                               WHERE g.member = m.oid AND r.rolname IN ({app_name}, t.roles[1])
                                 AND NOT coalesce((to_jsonb(g) ->> 'inherit_option')::boolean, true)) THEN ''
                             WHEN current_setting('server_version_num')::integer >= 160000 THEN ' WITH INHERIT TRUE'
                             ELSE format('; ALTER ROLE %I INHERIT', m.rolname) END)
          FROM pg_roles AS m
          CROSS JOIN (SELECT array_agg({schema}.territory_role(code) ORDER BY code) AS roles FROM {schema}.territories) AS t
          WHERE m.rolname = member
        $body$;
        COMMENT ON FUNCTION {schema}.granting(name) IS
        'What a superuser runs so that a login, or the role that it sets, is a member of the app role and a territory, and acts with them';
        REVOKE ALL ON FUNCTION {schema}.granting(name) FROM PUBLIC
        """)
    )


def create_shell_word() -> None:
    # A code may be any text, and a remedy is pasted into a shell.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.shell_word(said text)
        RETURNS text
        LANGUAGE sql
        IMMUTABLE
        RETURN CASE WHEN said ~ '^[A-Za-z0-9_]+$' THEN said
          ELSE '''' || pg_catalog.replace(said, '''', '''"''"''') || '''' END;
        COMMENT ON FUNCTION {schema}.shell_word(text) IS 'A text as one word of a command line';
        REVOKE ALL ON FUNCTION {schema}.shell_word(text) FROM PUBLIC
        """)
    )


def create_gate() -> None:
    # The data and the catalog are asked, no status row but the times at which something ended. The
    # settings are arguments, because a release engineer opens the gate by changing them.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.gate_conditions(
          observation_window interval, host_rls text, exempt_roles name[], lead_tables text[] DEFAULT '{}')
        RETURNS TABLE (condition text, met boolean, detail text, remedy text)
        LANGUAGE plpgsql
        STABLE SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp
        SET row_security = on
        AS $body$
        #variable_conflict use_variable
        DECLARE
          complete_since timestamptz;
          codes text[];
          tallies bigint[];
          unowned bigint[];
          missing bigint[];
          leads bigint;
          several bigint;
          host_owner oid := (SELECT relowner FROM pg_class WHERE oid = {leads_name}::regclass);
          -- where the table is forced its owner is bound like anybody else
          forced boolean := host_rls = 'force' OR (SELECT relforcerowsecurity FROM pg_class WHERE oid = {leads_name}::regclass);
          -- a note stands for the writes of an interval; a window of 0 asks for no look back at all
          noted interval := CASE WHEN observation_window > interval '0' THEN {note_interval} ELSE interval '0' END;
        BEGIN
          -- the login for backups sees all by its own attribute, and no service may become it
          exempt_roles := array_append(exempt_roles, {backup_name}::name);
          -- row security that the host had before binds the owner too: what it can't see, it can't miss
          condition := 'visibility';
          SELECT count(*) = 0,
                 coalesce(string_agg(hidden.detail, ', '), 'no row of the host is hidden from ' || quote_ident({reader_name})),
                 string_agg(hidden.remedy, ' ')
          INTO met, detail, remedy
          FROM (
            SELECT format('row-level security of %s hides rows from %I', c.oid::regclass, {reader_name})
                     || coalesce(' (restrictive policy ' || p.binding || ')', '') AS detail,
                   concat_ws(' ',
                     CASE WHEN p.opened IS NOT TRUE
                       THEN format('CREATE POLICY %I ON %s FOR SELECT TO %I USING (current_user = %L);', 'read_for_' || {reader_name},
                                   c.oid::regclass, {reader_name}, {reader_name}) END,
                     'let restrictive policies bind the roles of your application only: ALTER POLICY '
                       || p.binding || format(' ON %s TO ...', c.oid::regclass)) AS remedy
            FROM pg_class AS c CROSS JOIN LATERAL (
              SELECT bool_or(q.polpermissive AND q.condition IN ('true', {inside_reader})) AS opened,
                     string_agg(quote_ident(q.polname), ', ' ORDER BY q.polname)
                       FILTER (WHERE NOT q.polpermissive AND q.condition <> 'true'
                         AND q.polname <> ALL (ARRAY[{host_policies}]::name[])) AS binding
              FROM (
                SELECT polname, polpermissive, pg_get_expr(polqual, polrelid) AS condition FROM pg_policy
                WHERE polrelid = c.oid AND polcmd IN ('r', '*') AND EXISTS (
                  SELECT FROM unnest(polroles) AS bound WHERE bound = 0 OR pg_has_role(bound, 'USAGE'))) AS q) AS p
            WHERE c.oid = ANY (ARRAY[{host_names}]::regclass[]) AND row_security_active(c.oid)
              AND (p.opened IS NOT TRUE OR p.binding IS NOT NULL)
            ORDER BY c.relname) AS hidden;
          IF met THEN
            SELECT count(*) = 0, coalesce(string_agg(u.detail, ', '), detail), string_agg(replace(u.remedy, E'\\n', ' '), ' ')
            INTO met, detail, remedy FROM {schema}.unreadable() AS u;
            IF NOT met THEN
              -- whatever else is asked reads the same tables
              RETURN NEXT;
              RETURN;
            END IF;
          END IF;
          RETURN NEXT;

          SELECT array_agg(t.territory), array_agg(t.leads), array_agg(t.unowned), array_agg(t.missing), coalesce(sum(t.leads), 0)
          INTO codes, tallies, unowned, missing, leads FROM {schema}.lead_tally() AS t;

          condition := 'owners';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('%s leads in %s have %s but no owner', t.leads, t.code, {owned_by}), ', ' ORDER BY t.code),
                          'every lead with ' || {owned_by} || ' has its owner'),
                 'leadprotect backfill ' || string_agg({schema}.shell_word(t.code), ' ' ORDER BY t.code)
          INTO met, detail, remedy
          FROM unnest(codes, missing) AS t (code, leads) WHERE t.leads > 0;
          -- Before a walk has ended, a derived owner may be older than the transition's triggers: from a
          -- life before a downgrade. It is asked before that index goes; the triggers keep what was found.
          IF met AND {schema}.sources_indexed() THEN
            SELECT count(*) = 0,
                   coalesce(string_agg(format('%s leads in %s have another owner than %s says',
                              stale.leads, stale.code, {owner_says}), ', '), detail),
                   'leadprotect backfill ' || string_agg({schema}.shell_word(stale.code), ' ')
            INTO met, detail, remedy
            FROM (
              SELECT j.territory AS code, count(*) AS leads
              FROM {schema}.backfill_jobs AS j, {schema}.backfill_stale(j.territory)
              WHERE j.ended_at IS NULL
              GROUP BY j.territory ORDER BY j.territory) AS stale;
          END IF;
          RETURN NEXT;

          -- what keeps owners current until contract: off for a while, and an older owner stands
          condition := 'transition';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('the trigger of %s on %s %s', kept.function, kept.host_table, kept.state), ', '),
                          'the triggers of the transition keep owners current'),
                 string_agg(CASE WHEN kept.name IS NULL THEN 'alembic downgrade lp_0009_expand_indexes and upgrade head make it anew;'
                                 ELSE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I;', kept.host_table, kept.name) END, ' ')
                   || ' then leadprotect backfill for every territory'
          INTO met, detail, remedy
          FROM (
            SELECT wanted.function, coalesce(t.tgrelid::regclass, wanted.host_table) AS host_table, t.tgname AS name,
                   CASE WHEN t.oid IS NULL THEN 'is gone' WHEN t.tgenabled = 'D' THEN 'is disabled'
                     WHEN t.tgenabled <> 'A' THEN 'does not fire always' END AS state
            FROM (VALUES {transition_triggers}) AS wanted (function, host_table, name)
            LEFT JOIN (
              pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid AND p.pronamespace = {schema_name}::regnamespace)
              ON p.proname = wanted.function AND t.tgname = wanted.name
              AND (t.tgrelid = wanted.host_table
                -- each partition has its own, which can be disabled alone
                OR t.tgparentid <> 0 AND t.tgrelid IN (SELECT part.relid FROM pg_partition_tree(wanted.host_table) AS part))
            -- contract ends them itself, first those on the leads
            WHERE to_regclass('{schema}.host_row_security') IS NULL) AS kept
          WHERE kept.state IS NOT NULL;
          RETURN NEXT;

          condition := 'constraints';
          SELECT count(*) = 0,
                 coalesce('not validated: ' || string_agg(format('%I on %s', c.conname, c.conrelid::regclass), ', '),
                          'all constraints are validated'),
                 string_agg(format('ALTER TABLE %s VALIDATE CONSTRAINT %I;', c.conrelid::regclass, c.conname), ' ')
          INTO met, detail, remedy
          FROM pg_constraint AS c
          WHERE c.connamespace = {schema_name}::regnamespace AND NOT c.convalidated;
          RETURN NEXT;

          condition := 'observation_window';
          SELECT max(greatest(j.registered_at, j.finished_at)) INTO complete_since FROM {schema}.backfill_jobs AS j;
          met := coalesce(complete_since + observation_window <= clock_timestamp(), false);
          detail := format('migrate is complete since %s, the observation window is %s',
                           coalesce(to_char(complete_since AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'), 'never'),
                           justify_hours(observation_window));
          remedy := CASE WHEN NOT met THEN
            format('wait until %s, or shorten observation_window',
                   to_char((complete_since + observation_window) AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')) END;
          RETURN NEXT;

          IF host_rls = 'off' THEN
            RETURN;
          END IF;

          condition := 'territories';
          -- what stands in a lead is data: it is shown in one short line, and no part of a command
          SELECT count(*) = 0,
                 coalesce(string_agg(format('%s leads carry the unknown territory %L', unknown.leads,
                            left(regexp_replace(unknown.territory, '[[:cntrl:]]', ' ', 'g'), 40)), ', '),
                          'every territory of a lead is known'),
                 string_agg(DISTINCT CASE
                   -- a code in another case is no other territory: their roles would have one name
                   WHEN unknown.meant IS NOT NULL AND {territory_column_name} <> '' THEN format('UPDATE %s SET %I = %L WHERE %2$I = %4$L;',
                     '{leads}', {territory_column_name}, unknown.meant, unknown.territory)
                   WHEN unknown.territory ~ '^[A-Za-z0-9][A-Za-z0-9_]{0,15}$'
                     THEN 'leadprotect territory add ' || unknown.territory
                   WHEN {schema}.is_code(unknown.territory)
                     THEN 'correct the territory of these leads, or name the suffix of a role: leadprotect territory add --suffix SUFFIX '
                       || {schema}.shell_word(unknown.territory)
                   ELSE 'correct the territory of these leads' END, '; ')
          INTO met, detail, remedy
          FROM (
            SELECT t.territory, t.leads, (
                     SELECT k.code FROM {schema}.territories AS k WHERE lower(k.code) = lower(t.territory)) AS meant
            FROM unnest(codes, tallies) AS t (territory, leads)
            WHERE t.territory IS NOT NULL AND t.territory NOT IN (SELECT known.code FROM {schema}.territories AS known)
            ORDER BY t.territory LIMIT 5) AS unknown;
          RETURN NEXT;

          -- whether anybody will be able to edit, and whether anything is protected: what is meant, and what
          -- a wrong setting looks like, differ by a person's word
          condition := 'unprotected';
          several := coalesce((SELECT sum(t.leads) FROM unnest(codes, tallies) AS t (territory, leads) WHERE t.territory IS NULL), 0);
          SELECT t.met, t.detail, t.remedy INTO met, detail, remedy
          FROM {schema}.tolerated('unprotected', several, leads, 'have no territory, so they stay everybody''s') AS t;
          RETURN NEXT;

          condition := 'unowned';
          -- a walk gives the missing ones their owners: who answers for them now answers for what will not be
          SELECT coalesce(sum(t.leads), 0), coalesce(sum(t.unowned - t.missing), 0) INTO leads, several
          FROM unnest(codes, tallies, unowned, missing) AS t (territory, leads, unowned, missing)
          JOIN {schema}.territories AS known ON known.code = t.territory;
          SELECT t.met, t.detail, t.remedy INTO met, detail, remedy
          FROM {schema}.tolerated('unowned', several, leads, 'of the territories have no owner, so nobody could edit them before he claims one') AS t;
          RETURN NEXT;

          IF {named} THEN
            condition := 'owner_column';
            SELECT count(d.lead_id) INTO several FROM {schema}.territories AS t, {schema}.owner_column_differs(t.code) AS d;
            met := true;
            detail := CASE WHEN 0 < ANY (missing) THEN format('%s is compared with the owners once every lead has its own', {owner_column_name})
              WHEN several = 0 THEN format('%s names the owner of every lead, and will be written with him', {owner_column_name})
              ELSE format('%s leads name somebody else in %s than their owner, or nobody; the owner counts from contract on, and is written with the next change, or then by SELECT %s.settle_owner_column(...)',
                          several, {owner_column_name}, {schema_name}) END;
            remedy := NULL;
            RETURN NEXT;
          END IF;

          condition := 'contextless_writes';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('login %I wrote to %s without a context at %s', late.login, late.host_table,
                            to_char(late.at AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')), ', '),
                          'no write without a context inside the observation window'),
                 'deploy the version that sets its context (leadprotect.acting_as) and wait until '
                   || to_char((max(late.at) + observation_window + noted) AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')
                   || ', or name the login in exempt_roles'
          INTO met, detail, remedy
          FROM (
            SELECT DISTINCT ON (w.login) w.login, w.host_table, w.at FROM {schema}.contextless_writes AS w
            WHERE NOT w.with_context AND w.at > clock_timestamp() - observation_window - noted
              AND w.login <> ALL (exempt_roles)
            ORDER BY w.login, w.at DESC) AS late;
          RETURN NEXT;

          condition := 'logins';
          SELECT count(*) = 0,
                 coalesce(string_agg(locked.detail, ', '), 'every login with privileges is a member, or owns the table and is idle'),
                 string_agg(locked.remedy, ' ') || ' or name it in exempt_roles'
          INTO met, detail, remedy
          FROM (
            WITH suspects AS (
              SELECT a.login, a.role, a.owns_leads AS owns, a.bypasses, a.serves AND a.territories <> '{}' AS ready,
                     (SELECT max(w.at) FROM {schema}.contextless_writes AS w
                      WHERE w.login = a.login AND w.at > clock_timestamp() - observation_window - noted) AS wrote
              FROM {schema}.acting_logins({leads_name}::regclass, exempt_roles,
                ARRAY(SELECT t.code FROM {schema}.territories AS t ORDER BY t.code),
                ARRAY(SELECT {schema}.territory_role(t.code) FROM {schema}.territories AS t ORDER BY t.code)) AS a
              WHERE NOT a.exempt)
            SELECT CASE WHEN s.owns
                THEN format('login %I owns %s, so row security does not bind it, and wrote at %s', s.login, {leads_label},
                            to_char(s.wrote AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))
                ELSE format('%s has privileges on %s but is no member of %s and a territory',
                            CASE s.role WHEN s.login THEN format('login %I', s.login)
                              ELSE format('role %I, which login %I sets,', s.role, s.login) END,
                            {leads_label}, {app_name}) END AS detail,
              CASE WHEN s.owns
                THEN format('let the service log in as another member of %I and wait until %s,', {app_name},
                            to_char((s.wrote + observation_window + noted) AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))
                -- what contract does not bind is to be meant
                ELSE CASE WHEN s.bypasses THEN format('ALTER ROLE %I NOBYPASSRLS; ', s.login) ELSE '' END
                     || {schema}.granting(s.role) END AS remedy
            FROM suspects AS s
            WHERE NOT s.ready AND (NOT s.owns OR s.wrote IS NOT NULL) OR s.owns AND s.wrote IS NOT NULL
            ORDER BY s.login LIMIT 20) AS locked;
          IF forced THEN
            detail := detail || (
              SELECT format('; %s is forced, so %I, who owns it, is bound like anybody else and keeps no maintenance access',
                            {leads_label}, o.rolname)
              FROM pg_roles AS o WHERE o.oid = host_owner);
          END IF;
          RETURN NEXT;

          -- what row security passes by must be out of reach of whoever it is to bind
          condition := 'exempt_roles';
          SELECT count(*) = 0,
                 coalesce(string_agg(format('login %I is a service and can become %I, which is exempt', m.login, m.exempt), ', '),
                          'no service can become an exempt role'),
                 string_agg(taken.back, ' ') || ' or take it out of exempt_roles'
          INTO met, detail, remedy
          FROM (
            SELECT l.oid, l.rolname AS login, e.oid AS exempt_oid, e.rolname AS exempt
            FROM pg_roles AS l JOIN pg_roles AS e ON e.rolname = ANY (exempt_roles) AND e.oid <> l.oid
            WHERE l.rolcanlogin AND NOT l.rolsuper AND pg_has_role(l.oid, e.oid, 'MEMBER')
              AND pg_has_role(l.oid, {app_name}, 'MEMBER')
              AND has_database_privilege(l.oid, current_database(), 'CONNECT')
            ORDER BY 2, 4 LIMIT 20) AS m
          CROSS JOIN LATERAL (
            -- a group may be what gives it; since PostgreSQL 16 each grantor's grant is one of its own, which only a newer
            -- server's memberships tell, and whom the login granted it keeps it, by a superuser's own grant
            SELECT string_agg(
                     coalesce(below.kept || ' ', '') || format('REVOKE %I FROM %I', pg_get_userbyid(g.roleid), m.login)
                     || CASE WHEN g.options ? 'set_option' AND g.grantor <> 10
                          THEN format(' GRANTED BY %I', pg_get_userbyid(g.grantor)) ELSE '' END
                     || CASE WHEN below.kept IS NULL THEN ';' ELSE ' CASCADE;' END, ' ' ORDER BY g.roleid, g.grantor) AS back
            FROM (SELECT a.roleid, a.member, a.grantor, to_jsonb(a) AS options FROM pg_auth_members AS a) AS g
            CROSS JOIN LATERAL (
              WITH RECURSIVE hanging AS (
                SELECT h.member, to_jsonb(h) AS options FROM pg_auth_members AS h
                WHERE h.roleid = g.roleid AND h.grantor = g.member AND g.options ? 'set_option'
                UNION
                SELECT h.member, to_jsonb(h) FROM hanging JOIN pg_auth_members AS h
                  ON h.roleid = g.roleid AND h.grantor = hanging.member)
              SELECT string_agg(format('GRANT %I TO %I WITH ADMIN %s, INHERIT %s, SET %s;', pg_get_userbyid(g.roleid),
                       pg_get_userbyid(h.member), h.options ->> 'admin_option', h.options ->> 'inherit_option',
                       h.options ->> 'set_option'), ' ') AS kept
              FROM hanging AS h) AS below
            WHERE g.member = m.oid AND (g.roleid = m.exempt_oid OR pg_has_role(g.roleid, m.exempt_oid, 'MEMBER'))) AS taken;
          RETURN NEXT;

          RETURN QUERY SELECT * FROM {schema}.ways_around(host_rls, exempt_roles);
          RETURN QUERY SELECT * FROM {schema}.what_changes(host_rls);
          RETURN QUERY SELECT * FROM {schema}.lead_table_conditions(host_rls, exempt_roles, lead_tables);
          RETURN QUERY SELECT * FROM {schema}.shadow_condition(observation_window, exempt_roles);
        END
        $body$;
        COMMENT ON FUNCTION {schema}.gate_conditions(interval, text, name[], text[]) IS
        'The conditions of contract, each with what is in the way and what to run';
        REVOKE ALL ON FUNCTION {schema}.gate_conditions(interval, text, name[], text[]) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {schema}.gate_conditions(interval, text, name[], text[]) TO {owner}, {operator}
        """)
    )


def leave_quarantine() -> None:
    # The last table has come back: what is left in it now is not ours.
    op.execute(
        sql("""
        DO $do$
        BEGIN
          IF pg_catalog.to_regnamespace({quarantine_name}) IS NOT NULL THEN
            DROP SCHEMA {quarantine};
          END IF;
        EXCEPTION WHEN dependent_objects_still_exist THEN
          NULL;
        END
        $do$
        """)
    )


def create_requirement() -> None:
    # Each contract revision asks again inside its own transaction, and it is the only gate of a script
    # rendered with --sql.
    op.execute(
        sql("""
        CREATE FUNCTION {schema}.require_open_gate(
          observation_window interval, host_rls text, exempt_roles name[], lead_tables text[] DEFAULT '{}')
        RETURNS void
        LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp
        AS $body$
        DECLARE
          closed text;
        BEGIN
          SELECT string_agg(format('%s (%s)', g.detail, g.remedy), '; ') INTO closed
          FROM {schema}.gate_conditions(observation_window, host_rls, exempt_roles, lead_tables) AS g
          WHERE g.met IS NOT TRUE;
          IF closed IS NOT NULL THEN
            RAISE EXCEPTION 'the gate of contract is closed: %', closed
              USING ERRCODE = 'LP409', HINT = 'leadprotect status shows what to run.';
          END IF;
        END
        $body$;
        COMMENT ON FUNCTION {schema}.require_open_gate(interval, text, name[], text[]) IS
        'Raises SQLSTATE LP409 while a condition of contract is false, with what is in the way and what to run';
        REVOKE ALL ON FUNCTION {schema}.require_open_gate(interval, text, name[], text[]) FROM PUBLIC
        """)
    )
