"""The example's model in eager PyTorch as workers of compare's protocol: as its class decodes, and with a hand-written cache."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "en-de"))


class Eager:
    """Greedy decoding as the user's module does it: the whole prefix again for every token."""

    imports = ("torch",)

    def __init__(self, folder: str, threads: int) -> None:
        self.folder, self.threads = Path(folder), threads

    def load(self) -> None:
        import torch
        from model import load

        torch.set_num_threads(self.threads)
        self.torch, self.model = torch, load(self.folder)

    def decode(self, source: Any, new_tokens: int) -> list[list[int]]:
        from model import greedy

        config = self.model.config
        end, config["eos_id"] = config["eos_id"], -1  # exactly new_tokens of them
        try:
            return greedy(self.model, source, new_tokens)
        finally:
            config["eos_id"] = end

    def generate(self, inputs: list[list[int]], max_new_tokens: int = 32, **options: Any) -> list[dict[str, Any]]:
        """Rows of one length → exactly max_new_tokens tokens each."""
        rows = self.decode(self.torch.tensor(inputs), max_new_tokens)
        return [{"text": "", "tokens": row, "score": 0.0} for row in rows]


class Cached(Eager):
    """Greedy decoding with a key/value cache and cross keys computed once."""

    def decode(self, source: Any, new_tokens: int) -> list[list[int]]:
        from torch_cached import CachedDecoder

        rows: list[list[int]] = CachedDecoder(self.model).generate(source, new_tokens, stop_at_eos=False).tolist()
        return rows
