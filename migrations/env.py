"""Alembic's environment of leadprotect; all of it stands in the library, where a host's own env.py finds it, too."""

from leadprotect.migration import environment

environment.run()
