"""The connection: running a statement on whatever the caller owns, and reading the catalog."""
