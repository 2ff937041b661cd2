"""The chat template of a Hugging Face folder, where one came with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxport.errors import CheckpointError
from onnxport.export.exported import ChatTemplate
from onnxport.export.tokenizers import library, special_tokens

FILE = "chat_template.jinja"  # newer than the key of tokenizer_config.json, and before it
KEY = "chat_template"
DEFAULT = "default"


def read(folder: Path, loaded: Any) -> tuple[ChatTemplate | None, list[Path]]:
    """The template of transformers' tokenizer of a folder, and its own file; (None, []) without a template.

    Of several templates the one called "default" counts. CheckpointError when it is no text.
    """
    template = loaded.chat_template
    if isinstance(template, dict):  # several, each with a name
        template = template.get(DEFAULT)
    if template is None:
        return None, []
    if not isinstance(template, str):
        raise CheckpointError(
            f"{folder / special_tokens.FILES[0]} has a {KEY} that is {type(template).__name__}, expected text; copy it again"
        )
    return ChatTemplate(template, library.named_tokens(loaded)), [path for path in (folder / FILE,) if path.is_file()]
