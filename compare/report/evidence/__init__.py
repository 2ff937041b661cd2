"""Evidence from when variants were made: sensitivities of modules, errors of layers, searches for plans."""
