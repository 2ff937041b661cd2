"""Answers of a given form: what a caller asks for becomes a grammar, and a grammar says which tokens may come. The work is llguidance's."""
