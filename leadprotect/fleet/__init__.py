"""Several databases, each with some of the territories: one command on all of them, side by side."""
