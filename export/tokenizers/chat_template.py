"""The chat template of a Hugging Face folder, where one came with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxport.errors import CheckpointError
from onnxport.export.config_checks import read_json
from onnxport.export.exported import ChatTemplate
from onnxport.export.tokenizers import special_tokens

FILE = "chat_template.jinja"  # newer than the key of tokenizer_config.json, and before it
KEY = "chat_template"


def read(folder: Path) -> tuple[ChatTemplate | None, list[Path]]:
    """The template and the files read; (None, []) without a template.

    Of several templates the one called "default" counts. CheckpointError when a file is damaged.
    """
    files = [folder / name for name in special_tokens.FILES[:2] if (folder / name).is_file()]
    config, *mapped = [read_json(path) for path in files] if files else [{}]
    if files and files[0].name != special_tokens.FILES[0]:
        config, mapped = {}, [config]
    named = {**config, **(mapped[0] if mapped and "added_tokens_decoder" not in config else {})}
    template = _template(config.get(KEY), folder)
    if (own := folder / FILE).is_file():
        try:
            template = own.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{own} cannot be read ({error}); copy it again") from error
        files.append(own)
    if template is None:
        return None, []
    texts = {name: special_tokens.content(value) for name, value in named.items() if name.endswith("_token")}
    return ChatTemplate(template, {name: text for name, text in sorted(texts.items()) if text}), files


def _template(value: Any, folder: Path) -> str | None:
    if isinstance(value, list):  # several, each with a name
        value = next((one.get("template") for one in value if isinstance(one, dict) and one.get("name") == "default"), None)
    if value is not None and not isinstance(value, str):
        raise CheckpointError(
            f"{folder / special_tokens.FILES[0]} has a {KEY} that is {type(value).__name__}, expected text; copy it again"
        )
    return value
