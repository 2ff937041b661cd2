"""Measurements of sides: speed, latency, memory, energy, and the machine."""
