"""Tasks of the runtime, one a module, each imported when it is first used."""
