"""DistilBERT: BERT's layers under other names, without token types."""

from onnxport.export.canonical.weight_table import WeightTable, linear, merged, norm, packed
from onnxport.export.config_checks import DEPTH, WIDTH, Key, dropout, integer, one_of
from onnxport.export.hugging_face.config_keys import ACTIVATIONS, FLAG
from onnxport.export.hugging_face.encoder import CHOICE, QUESTIONS, TOKENS, EncoderFamily, HeadNames, masked

KEYS = {
    "dim": Key(integer(1, WIDTH), None),
    "n_layers": Key(integer(1, DEPTH), None),
    "n_heads": Key(integer(1, WIDTH), None),
    "hidden_dim": Key(integer(1, 16 * WIDTH), None),
    "activation": Key(one_of(*ACTIVATIONS), None),
    "sinusoidal_pos_embds": FLAG,  # how the table began; its values are in the weights
    "tie_weights_": FLAG,
    "qa_dropout": Key(dropout, None),
    "seq_classif_dropout": Key(dropout, None),
}

FAMILIES = (
    EncoderFamily(
        model_type="distilbert",
        base="distilbert",
        table=WeightTable(
            layer=[
                *linear(
                    ("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.qkv", "attention.qkv_lin", packed(3), packed(3)
                ),
                *linear("attention.out_lin", "attention.out", weight=merged),
                *norm("sa_layer_norm", "attention_norm"),
                *linear("ffn.lin1", "feed_forward.up"),
                *linear("ffn.lin2", "feed_forward.down"),
                *norm("output_layer_norm", "feed_forward_norm"),
            ],
            modules={"feed_forward": "ffn"},
        ),
        heads={
            "DistilBertModel": None,
            "DistilBertForSequenceClassification": HeadNames("classification", "classifier", "first", "pre_classifier", "relu"),
            "DistilBertForQuestionAnswering": QUESTIONS,
            "DistilBertForTokenClassification": TOKENS,
            "DistilBertForMultipleChoice": HeadNames(CHOICE, "classifier", "first", "pre_classifier", "relu"),
            "DistilBertForMaskedLM": masked("vocab_", "transform", "layer_norm", "projector"),
        },
        bare=(),
        paths={
            "tokens": "embeddings.word_embeddings",
            "positions": "embeddings.position_embeddings",
            "norm": "embeddings.LayerNorm",
            "layers": "transformer.layer",
        },
        keys=KEYS,
        activation="activation",
        settings=frozenset(KEYS),
    ),
)
