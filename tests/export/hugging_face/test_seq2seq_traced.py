"""Graphs traced from Hugging Face folders equal transformers' own classes."""

from __future__ import annotations

from pathlib import Path

from onnxport.export import export
from support import hf_folders
from support.graph_checks import assert_seq2seq_graphs_equal_original


def test_traced_graphs_equal_transformers_at_shapes_not_traced(tmp_path: Path) -> None:
    """BART's, with padded heads; Marian's graphs are those of the bundle that answers as its `generate` does."""
    heads = {"d_model": 40, "encoder_attention_heads": 4, "decoder_attention_heads": 2, "decoder_layers": 1, "encoder_layers": 1}
    exported = export(hf_folders.bart(tmp_path, **heads))
    assert_seq2seq_graphs_equal_original(exported)
    assert_seq2seq_graphs_equal_original(exported, beams=3)
    assert exported.route == "canonical" and exported.generation.head_size == 24 and exported.generation.kv_heads == 2
    names = set(exported.graphs["decoder"].graph.initializers)
    assert {"model.shared.weight", "model.decoder.layers.0.self_attn.qkv_proj.weight", "final_logits_bias"} < names
