"""What the next deploy would do to this database, before it does: revisions, the gate, and who would lose what."""
