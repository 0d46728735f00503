-- one row with as many columns as the audit's, and one index
\set lead random(0, :leads / 100 - 1) * 100
INSERT INTO public.plain_log (lead_id, user_id, login, role, territory, action, outcome, reason, transaction_id)
VALUES (md5('lead ' || :lead)::uuid, '00000000-0000-4000-8000-000000000000',
        session_user, current_user, 'DE', 'EDIT', 'ALLOW', 'owner', pg_current_xact_id());
