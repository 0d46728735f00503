"""For who writes revisions: the next number, a template that asks, and what is wrong with a chain."""
