"""Folders in Hugging Face's layout, read as transformers loads them."""
