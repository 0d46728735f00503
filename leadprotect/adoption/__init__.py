"""For who begins: looks at a database that somebody else made, and proposes the settings with their reasons."""
