"""A service's own backfill of DE, as a program: size of a batch, workers, seconds of a lease."""

import sys

from leadprotect import backfill

if __name__ == "__main__":
    batch_size, workers, lease = map(float, sys.argv[1:])
    backfill(None, ["DE"], batch_size=int(batch_size), workers=int(workers), lease=lease)
