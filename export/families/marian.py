"""Marian: BART's layers with sinusoidal positions, and vocabularies that may be apart."""

from onnxport.export.config_checks import ROWS, Key, integer, optional
from onnxport.export.families.bart import TABLE
from onnxport.export.hugging_face.config_keys import FLAG, always
from onnxport.export.hugging_face.seq2seq import Seq2SeqFamily

FAMILIES = (
    Seq2SeqFamily(
        model_type="marian",
        classes=("MarianMTModel", "MarianModel"),
        table=TABLE,
        task=lambda config: "translation",
        keys={
            "decoder_vocab_size": Key(optional(integer(1, ROWS)), None),
            "share_encoder_decoder_embeddings": FLAG,
            "normalize_embedding": always(False, None),
            "static_position_embeddings": always(True, None),
        },
    ),
)
