"""``python -m leadprotect`` is the command ``leadprotect``."""

from leadprotect.cli import main

main()
