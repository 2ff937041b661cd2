"""The small decoder's fixtures."""

from support.small_decoder import eager, session, standard, tools, traced  # noqa: F401
