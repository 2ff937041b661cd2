"""RoBERTa: BERT's layers, positions that begin behind the padding's id, a head of its own."""

from onnxport.export.families.bert import PATHS, TABLE
from onnxport.export.hugging_face.encoder import CHOICE, QUESTIONS, SIZED, TOKENS, EncoderFamily, HeadNames, masked


def roberta(model_type: str, prefix: str) -> EncoderFamily:
    """A family whose classes' names begin with `prefix`."""
    return EncoderFamily(
        model_type=model_type,
        base="roberta",
        table=TABLE,
        heads={
            f"{prefix}Model": None,
            f"{prefix}ForSequenceClassification": HeadNames("classification", "classifier.out_proj", "first", "classifier.dense"),
            f"{prefix}ForQuestionAnswering": QUESTIONS,
            f"{prefix}ForTokenClassification": TOKENS,
            f"{prefix}ForMultipleChoice": HeadNames(CHOICE, "classifier", "first", "roberta.pooler.dense"),
            f"{prefix}ForMaskedLM": masked("lm_head.", "dense", "layer_norm", "decoder", "gelu"),
        },
        bare=(),
        paths=PATHS,
        keys=SIZED,
        counted=True,
        settings=frozenset(SIZED),
    )


FAMILIES = (roberta("roberta", "Roberta"), roberta("camembert", "Camembert"), roberta("xlm-roberta", "XLMRoberta"))
