"""Bundles in other engines and under other libraries' interfaces: one file an engine, each imported by its full name only."""
