"""For the release engineer: the way up and down, its locks, its gate, where it stands, and how it is left."""
