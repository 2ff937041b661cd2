"""The search behind `--precision auto`: the fastest plan within a budget of quality."""
