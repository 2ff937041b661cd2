"""What only one task needs at run time; each module is imported when it is used."""
