"""Keys of Hugging Face's config.json, as transformers 4 and 5 write it: those that must hold, and those that do not matter."""

from collections.abc import Iterable, Mapping
from typing import Any

from onnxport.export.config_checks import DEPTH, LENGTH, ROWS, WIDTH, Key, integer, one_of, read_keys
from onnxport.export.hugging_face import generation_settings
from onnxport.export.transformers_library import unread_keys

# transformers' name of an activation → the canonical model's
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "gelu_sigmoid",
    "relu": "relu",
    "relu2": "relu_squared",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def always(*values: Any) -> Key:
    """A key that may only hold what the class does anyway."""
    return Key(one_of(*values), None)


HEADS, SIZE, FLAG = Key(integer(1, WIDTH), None), Key(integer(1, 16 * WIDTH), None), always(True, False)
# no key is needed: transformers' own defaults hold
KEYS: dict[str, Key] = {
    "d_model": Key(integer(1, WIDTH), None),
    "encoder_layers": Key(integer(1, DEPTH), None),
    "decoder_layers": Key(integer(1, DEPTH), None),
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": SIZE,
    "decoder_ffn_dim": SIZE,
    "vocab_size": Key(integer(1, ROWS), None),
    "max_position_embeddings": Key(integer(1, LENGTH), None),
    "activation_function": Key(one_of(*ACTIVATIONS), None),
    "scale_embedding": FLAG,
    "tie_word_embeddings": FLAG,
    "is_encoder_decoder": always(True),
    "is_decoder": always(False),
    "add_cross_attention": always(False),
    "cross_attention_hidden_size": always(None),
    "tie_encoder_decoder": always(False),
    "pruned_heads": always({}, None),
    "prefix": always(None, "", " "),
    "add_bias_logits": always(False, None),  # the class always adds final_logits_bias
    "add_final_layer_norm": always(False, None),
    "normalize_before": always(False, None),
}
# other names for a key, which older configs hold beside it
ALIASES = {"hidden_size": "d_model", "num_hidden_layers": "encoder_layers", "num_attention_heads": "encoder_attention_heads"}
# training, bookkeeping, other heads, what a call gives back
IGNORED = frozenset(
    """_attn_implementation attn_implementation _commit_hash _name_or_path name_or_path _num_labels num_labels model_type architectures
    transformers_version torch_dtype dtype use_cache init_std dropout attention_dropout activation_dropout classif_dropout
    classifier_dropout encoder_layerdrop decoder_layerdrop id2label label2id gradient_checkpointing output_past output_attentions
    output_hidden_states return_dict problem_type finetuning_task save_step replacing_rate student_encoder_layers student_decoder_layers
    extra_pos_embeddings task_specific_params tokenizer_class torchscript use_bfloat16 xla_device chunk_size_feed_forward tf_legacy_loss
    sep_token_id cls_token_id""".split()
)


def read_config(
    model_type: str, config: Mapping[str, Any], keys: Mapping[str, Key], ignored: frozenset[str]
) -> tuple[dict[str, Any], set[str], list[str]]:
    """`read_keys` of a config.json of transformers, where what its class for this `model_type` never reads may be there too."""
    unread = unread_keys(model_type, config.keys() - keys.keys() - ignored)
    return read_keys(config, keys, ignored | unread)


def architecture_problems(config: Mapping[str, Any], classes: Iterable[str]) -> list[str]:
    """What is wrong with `architectures`, which may be missing, or names one of the classes."""
    named, known = config.get("architectures"), list(classes)
    if named is None or (isinstance(named, list) and len(named) == 1 and named[0] in known):
        return []
    return [f"architectures is {named!r:.60}, expected one of {', '.join(known)}"]


def config_problems(model_type: str, config: Mapping[str, Any], keys: Mapping[str, Key], classes: tuple[str, ...]) -> list[str]:
    """Everything in a config that the canonical model would not reproduce. `keys`: the family's own beside `KEYS`."""
    known = IGNORED | ALIASES.keys() | generation_settings.KNOWN | {"force_bos_token_to_be_generated"}
    _, usable, problems = read_config(model_type, config, {**KEYS, **keys}, frozenset(known))
    problems += [
        f"{alias} is {config[alias]!r:.40}, expected {name}'s {config[name]!r:.40}"
        for alias, name in ALIASES.items()
        if alias in config and name in config and config[alias] != config[name]
    ]
    problems += architecture_problems(config, classes)
    for side in ("encoder", "decoder"):
        heads = f"{side}_attention_heads"
        if {"d_model", heads} <= usable and config.get("d_model") and config.get(heads) and config["d_model"] % config[heads]:
            problems.append(f"d_model {config['d_model']} does not divide by {heads} {config[heads]}")
    sizes = config.get("vocab_size"), config.get("decoder_vocab_size")
    if config.get("share_encoder_decoder_embeddings", True) and None not in sizes and sizes[0] != sizes[1]:
        problems.append(f"embeddings are shared but vocab_size is {sizes[0]} and decoder_vocab_size {sizes[1]}")
    if config.get("force_bos_token_to_be_generated") and config.get("forced_bos_token_id") is None:
        problems.append("force_bos_token_to_be_generated is True, expected forced_bos_token_id; transformers 5 reads only that")
    return problems
