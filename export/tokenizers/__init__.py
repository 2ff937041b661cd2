"""Tokenizers of a source as tokenizer.json files, which the runtime reads without sentencepiece or transformers."""
