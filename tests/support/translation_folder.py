"""A tiny translation model, written as a folder in our layout."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

WORDS = "<pad> <s> </s> <unk> a b c d e f g h i j k l m n o p q r s t u v w x y z one two three four".split()
CONFIG = {
    "architecture": "torch.nn.Transformer",
    "d_model": 32,
    "nhead": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "dim_feedforward": 48,
    "activation": "relu",
    "norm_first": True,
    "layer_norm_eps": 1e-5,
    "bias": True,
    "source_vocab_size": len(WORDS),
    "target_vocab_size": len(WORDS),
    "positions": "sinusoidal",
    "embedding_scale": 32**0.5,
    "tie_embeddings": True,
    "max_length": 24,
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "task": "translation",
}


def write_tokenizer(path: Path) -> None:
    vocabulary = {word if word.startswith("<") else "▁" + word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.save(str(path))


def write_model(folder: Path) -> Path:
    """A random torch.nn.Transformer in our folder layout, from a fixed seed."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        names = ("d_model", "nhead", "num_encoder_layers", "num_decoder_layers", "dim_feedforward", "norm_first")
        transformer = torch.nn.Transformer(**{name: CONFIG[name] for name in names}, batch_first=True)
        weights = {f"transformer.{name}": tensor for name, tensor in transformer.state_dict().items()}
        weights["source_embedding.weight"] = torch.randn(len(WORDS), 32) * 0.3
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(folder / "tokenizer.json")
    return folder
