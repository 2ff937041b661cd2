"""BERT: layers normed after their residuals, learned positions, token types."""

from onnxport.export.canonical.weight_table import WeightTable, linear, merged, norm, packed
from onnxport.export.hugging_face.encoder import CHOICE, QUESTIONS, SIZED, TOKENS, EncoderFamily, HeadNames, masked

TABLE = WeightTable(
    layer=[
        *linear(
            ("attention.self.query", "attention.self.key", "attention.self.value"),
            "attention.qkv",
            "attention.self.qkv",
            packed(3),
            packed(3),
        ),
        *linear("attention.output.dense", "attention.out", weight=merged),
        *norm("attention.output.LayerNorm", "attention_norm"),
        *linear("intermediate.dense", "feed_forward.up"),
        *linear("output.dense", "feed_forward.down"),
        *norm("output.LayerNorm", "feed_forward_norm"),
    ],
    modules={"attention": "attention.self", "feed_forward": "intermediate"},
)
PATHS = {
    "tokens": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "layers": "encoder.layer",
}

FAMILIES = (
    EncoderFamily(
        model_type="bert",
        base="bert",
        table=TABLE,
        heads={
            "BertModel": None,
            "BertForSequenceClassification": HeadNames("classification", "classifier", "first", "bert.pooler.dense"),
            "BertForQuestionAnswering": QUESTIONS,
            "BertForTokenClassification": TOKENS,
            "BertForMultipleChoice": HeadNames(CHOICE, "classifier", "first", "bert.pooler.dense"),
            "BertForMaskedLM": masked(
                "cls.predictions.", "transform.dense", "transform.LayerNorm", "decoder", unread=(r"^cls\.seq_relationship\.",)
            ),
        },
        bare=("BertForPreTraining", "BertForNextSentencePrediction"),
        paths=PATHS,
        keys=SIZED,
        settings=frozenset(SIZED),
    ),
)
