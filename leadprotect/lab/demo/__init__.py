"""The demo: the whole migration on a PostgreSQL of its own, told as a story."""
