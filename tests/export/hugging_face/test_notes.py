"""What an export leaves out or assumes is said, and decoders of sentence-transformers embed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from onnxport.build.stages import build
from onnxport.cli.commands import cli
from onnxport.errors import UsageError
from onnxport.export import export
from onnxport.runtime import load
from support import encoder_folders as folders


def test_a_head_that_is_left_out_is_said_everywhere(tmp_path: Path) -> None:
    import transformers

    model = transformers.BertForPreTraining(folders.make("bert", num_hidden_layers=1).config)
    folder = folders.write(tmp_path / "source", model, "bert")
    bundle = str(tmp_path / "bundle")
    done = CliRunner().invoke(cli, ["export", str(folder), "--out", bundle, "--precision", "fp32"])
    said = "the head of BertForPreTraining is left out: the bundle has the hidden states of BertModel, task embedding"
    assert done.exit_code == 0 and f"note: {said}" in done.stderr.splitlines() and said not in done.stdout
    assert f"note: {said}" in CliRunner().invoke(cli, ["inspect", bundle]).stdout.splitlines()
    assert json.loads(CliRunner().invoke(cli, ["inspect", bundle, "--json"]).stdout)["provenance"]["notes"] == [said]


@pytest.mark.parametrize("pooling", ["lasttoken", "mean_tokens"])
def test_a_decoder_with_a_pooling_embeds(tmp_path: Path, pooling: str) -> None:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(vocab_size=61, head_dim=8, max_position_embeddings=64, **sizes)).eval()
    folder = tmp_path / "source"
    model.save_pretrained(folder)
    tokenizer = folders.tokenizer("bert")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    (folder / "modules.json").write_text(
        json.dumps([{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds])
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    bundle = build(str(folder), tmp_path / "bundle", precision=("fp32",))
    assert bundle.task == "embedding" and "the head of Qwen3ForCausalLM is left out" in bundle.provenance["notes"][0]
    with pytest.raises(UsageError, match=r"text-generation is not possible for .*: its modules\.json makes it an embedding model; copy"):
        export(folder, task="text-generation")
    texts = ["the cat sat", "a dog"]
    with load(bundle.path, threads=1) as ours, torch.no_grad():
        for text, found in zip(texts, ours.encode(texts), strict=True):
            states = model.model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
            wanted = states[-1] if pooling == "lasttoken" else states.mean(0)
            np.testing.assert_allclose(found, torch.nn.functional.normalize(wanted, dim=0).numpy(), atol=1e-5)
