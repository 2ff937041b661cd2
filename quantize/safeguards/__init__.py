"""Safeguards: which parts a recipe leaves more precise, by measurements on the model itself."""
