"""Benchmarks: ratios inside one run, on a server of their own; never part of the tests."""
