"""Norms by one kernel."""
