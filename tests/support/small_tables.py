"""As `python -m alembic`, where no table is too small for its indexes to be built at once."""

import sys

from alembic.config import main

from leadprotect.migration import builds

if __name__ == "__main__":
    builds.WORTH_BYTES = 0
    main(prog="alembic", argv=sys.argv[1:])
