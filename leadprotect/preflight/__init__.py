"""May it be touched? What must be true of a database before a revision or a backfill begins."""
