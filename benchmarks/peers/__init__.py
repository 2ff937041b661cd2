"""Peers as workers: each module here runs in its own environment (see setup.py), against the same Hugging Face folder.

A module is named like its requirements file and holds `convert(source, out)`, which makes everything that its sides load, and a `Peer`:
a side of compare's worker protocol, `Peer(folder, precision, threads)`. `python -m peers.NAME SOURCE OUT` converts.
"""
