"""The embeddings for LangChain that docs/drop-in.md shows, in a vector store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from langchain_core.vectorstores import InMemoryVectorStore

from support.drop_in_folders import PROMPTS, bundled, embedder
from support.paths import ROOT


def test_the_class_of_the_document(tmp_path: Path) -> None:
    section = (ROOT / "docs" / "drop-in.md").read_text(encoding="utf-8").partition("## LangChain")[2]
    shown = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert shown is not None
    names: dict[str, Any] = {}
    exec(shown[1], names)
    embeddings = names["BundleEmbeddings"](bundled(embedder(tmp_path / "model", settings={"prompts": PROMPTS})))
    texts = ["the cat", "a dog lay by the door", "Ada came to London"]
    assert embeddings.embed_query("the cat") == embeddings.model.encode("find: the cat").tolist()
    store = InMemoryVectorStore(embeddings)
    store.add_texts(texts)
    scores = embeddings.model.similarity(embeddings.embed_query("Ada"), embeddings.embed_documents(texts))[0]
    assert store.similarity_search("Ada", k=1)[0].page_content == texts[int(scores.argmax())]
