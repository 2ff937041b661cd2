"""Marian: BART's layers with sinusoidal positions, and vocabularies that may be apart."""

from onnxport.export.families.bart import TABLE
from onnxport.export.families.checks import ROWS, Key, integer, optional
from onnxport.export.families.hugging_face_config import FLAG, always
from onnxport.export.families.hugging_face_seq2seq import Seq2SeqFamily

FAMILY = Seq2SeqFamily(
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
)
