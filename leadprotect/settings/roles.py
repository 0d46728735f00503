"""The statement that makes our roles, for the first revision and for what stands before it."""

from __future__ import annotations


def making_roles(wanted: str, acting: str) -> str:
    """A block that creates the roles that the query `wanted` names, and lets the migrating role act as `acting`.

    Both are SQL with the placeholders of a revision. Roles are shared by all databases of the cluster:
    created when missing, never dropped, and two databases may be migrated at the same moment. The comment
    tells a role of ours from one that somebody made before us.
    """
    return f"""
        DO $do$
        DECLARE
          wanted text;
        BEGIN
          -- else whoever migrates becomes a member of each, as if he were a service: no parameter of an older server
          IF pg_catalog.current_setting('createrole_self_grant', true) <> '' THEN
            PERFORM pg_catalog.set_config('createrole_self_grant', '', true);
          END IF;
          FOR wanted IN
            {wanted}
          LOOP
            BEGIN
              IF pg_catalog.to_regrole(pg_catalog.quote_ident(wanted)) IS NULL THEN
                EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', wanted);
              END IF;
              EXECUTE pg_catalog.format('COMMENT ON ROLE %I IS %L', wanted, {{role_comment}});
            EXCEPTION WHEN duplicate_object OR unique_violation OR insufficient_privilege THEN
              NULL;
            END;
          END LOOP;
          -- whoever migrates creates the objects as their owners
          IF NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
            FOREACH wanted IN ARRAY ARRAY[{acting}] LOOP
              BEGIN
                EXECUTE pg_catalog.format('SET LOCAL ROLE %I', wanted);
                EXECUTE 'RESET ROLE';
              EXCEPTION WHEN insufficient_privilege THEN
                EXECUTE pg_catalog.format('GRANT %I TO %I', wanted, current_user);
              END;
            END LOOP;
          END IF;
        END
        $do$
        """
