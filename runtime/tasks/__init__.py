"""A place for what only one task needs at run time; nothing so far."""
