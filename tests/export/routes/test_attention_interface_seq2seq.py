"""Encoder-decoders traced as their own classes: one tiny model for each mechanism, against transformers, ragged, cached, with beams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxport.build import build
from onnxport.errors import CheckpointError, UsageError
from onnxport.export import export
from onnxport.runtime import Model, load
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.decode.generator import Generator
from onnxport.runtime.options import Options, Watch
from support.commands import invoke
from support.tokenizer_folders import language_tokenizer

NEW = 8
SIZES = {"vocab_size": 97, "d_model": 32, "pad_token_id": 0, "eos_token_id": 2}
BART = SIZES | {
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40, "max_position_embeddings": 64,
}  # fmt: skip
T5 = SIZES | {"d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 4, "relative_attention_max_distance": 20, "decoder_start_token_id": 0}
BERT = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
TEXTS = ["the cat sat on the mat", "a green house", "der Hund sucht Brot und läuft über die Straße"]


def made(name: str, folder: Path, config: Any) -> Any:
    """A tiny random model of the class in a folder."""
    import transformers

    model = getattr(transformers, name)(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1.4 * noise / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else parameter + 0.1 * noise)
    model.save_pretrained(folder)
    return model


def bert2bert(folder: Path) -> Any:
    import transformers

    parts = [transformers.RobertaConfig(**BERT, max_position_embeddings=64), transformers.BertConfig(**BERT, max_position_embeddings=64)]
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 5, 1, 2
    return made("EncoderDecoderModel", folder, config)


def whole_logits(theirs: Any, source: list[int], target: list[int]) -> torch.Tensor:
    """Logits [target, vocabulary] of the class over the whole target."""
    with torch.no_grad():
        found = theirs(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target]), use_cache=False)
    logits: torch.Tensor = found.logits[0]
    return logits


def stepped_logits(theirs: Any, source: list[int], target: list[int]) -> torch.Tensor:
    """The same of one token a time, with the class's own cache."""
    logits, cache = [], None
    for token in target:
        with torch.no_grad():
            ids = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([[token]])}
            found = theirs(**ids, attention_mask=torch.ones(1, len(source), dtype=torch.long), cache=cache, use_cache=True)
        cache = found.cache
        logits.append(found.logits[0])
    return torch.cat(logits)


def agrees(theirs: Any, ours: Model, logits_of: Callable[[Any, list[int], list[int]], torch.Tensor] = whole_logits) -> None:
    """Log-probabilities of generated tokens are those of the class over the whole answer: ragged sources, rows at different positions."""
    assert ours.engine is not None and ours.engine.config.decoder_start_id is not None
    config, random = ours.engine.config.plain(), np.random.default_rng(3)
    sources = [random.integers(6, 90, length).tolist() for length in (5, 19, 1)]
    for beginnings in ([[], [], []], [[7], [9, 11, 13], []]):
        options = Options(beam=1, min_new_tokens=NEW, max_new_tokens=NEW)
        answers = Generator(ours.engine, None, None, config).generate(sources, beginnings, options, Watch())
        for source, beginning, answer in zip(sources, beginnings, answers, strict=True):
            begun = [config.decoder_start_id, *beginning]
            logits = logits_of(theirs, source, [*begun, *answer.tokens])[len(begun) - 1 : -1]
            expected = logits.log_softmax(-1)[torch.arange(NEW), torch.tensor(answer.tokens)]
            np.testing.assert_allclose(answer.token_logprobs, expected.numpy(), atol=1e-5 * float(logits.abs().max()) + 1e-6)


def beams_agree(theirs: Any, ours: Model, sources: Sequence[Sequence[int]], wanted: dict[str, Any], **options: Any) -> None:
    """Answers by two beams are those of transformers' `generate` of each source alone."""
    for source, answer in zip(sources, ours.generate(list(sources), beam=2, max_new_tokens=NEW, **options), strict=True):
        with torch.no_grad():
            found = theirs.generate(input_ids=torch.tensor([source]), num_beams=2, max_new_tokens=NEW, **wanted)[0]
        ends = theirs.generation_config.eos_token_id
        assert [i for i in found[1:].tolist() if i not in (ends, theirs.generation_config.pad_token_id)] == answer.tokens


def test_a_bias_in_every_layer(tmp_path: Path) -> None:
    import transformers

    theirs = made("UMT5ForConditionalGeneration", tmp_path / "folder", transformers.UMT5Config(**T5, num_decoder_layers=2))
    bundle = build(str(tmp_path / "folder"), tmp_path / "bundle", precision=("fp32",))
    assert bundle.manifest.value["provenance"]["route"] == "attention-interface"
    with load(tmp_path / "bundle", threads=1) as ours:
        assert ours.engine is not None and ours.engine.config.source_length is None
        agrees(theirs, ours)
        agrees_far(theirs, ours)


def agrees_far(theirs: Any, ours: Model) -> None:
    """Distances beyond the largest that is told apart."""
    assert ours.engine is not None
    (answer,) = Generator(ours.engine, None, None, ours.engine.config.plain()).generate(
        [[7, 8, 9]], [[11, 12, 13] * 12], Options(min_new_tokens=2, max_new_tokens=2), Watch()
    )
    target = torch.tensor([[0, *[11, 12, 13] * 12, *answer.tokens]])
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([[7, 8, 9]]), decoder_input_ids=target).logits[0, -3:-1].log_softmax(-1)
    np.testing.assert_allclose(answer.token_logprobs, logits[torch.arange(2), torch.tensor(answer.tokens)].numpy(), atol=1e-4)


def test_two_models_in_one(tmp_path: Path) -> None:
    theirs = bert2bert(tmp_path / "folder")
    bundle = build(str(tmp_path / "folder"), tmp_path / "bundle", precision=("fp32",))
    assert bundle.generation is not None and (bundle.generation.max_length, bundle.generation.source_length) == (64, 62)
    with load(tmp_path / "bundle", threads=1) as ours:
        agrees(theirs, ours)
        beams_agree(theirs, ours, [[7, 8, 9], [10]], {"decoder_start_token_id": 5, "pad_token_id": 1, "eos_token_id": 2})


def test_windows_soft_caps_and_grouped_heads(tmp_path: Path) -> None:
    import transformers

    part = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6, "max_position_embeddings": 64, "query_pre_attn_scalar": 8,
    }  # fmt: skip
    parts = {"encoder": part | {"num_hidden_layers": 1}, "decoder": part}
    config = transformers.T5GemmaConfig(**parts, vocab_size=97, pad_token_id=0, eos_token_id=2, bos_token_id=3)
    theirs = made("T5GemmaForConditionalGeneration", tmp_path / "folder", config)
    bundle = build(str(tmp_path / "folder"), tmp_path / "bundle", precision=("fp32",))
    assert bundle.generation is not None and [cache.window for cache in bundle.generation.layer_caches] == [6, None]
    with load(tmp_path / "bundle", threads=1) as ours:
        agrees(theirs, ours)


def test_n_grams_of_the_source_do_not_come_again(tmp_path: Path) -> None:
    import transformers

    theirs = made("BlenderbotForConditionalGeneration", tmp_path / "folder", transformers.BlenderbotConfig(**BART, bos_token_id=1))
    theirs.generation_config.update(encoder_no_repeat_ngram_size=1, no_repeat_ngram_size=2, min_length=5, pad_token_id=0, eos_token_id=2)
    theirs.generation_config.update(decoder_start_token_id=1, forced_eos_token_id=None)
    theirs.generation_config.save_pretrained(tmp_path / "folder")
    build(str(tmp_path / "folder"), tmp_path / "bundle", precision=("fp32",))
    with load(tmp_path / "bundle", threads=1) as ours:
        assert ours.bundle.manifest.value["requires"] == ["generation.encoder_no_repeat_ngram"]
        beams_agree(theirs, ours, [[7, 8, 9, 10], [5]], {})


def test_neighbours_in_the_encoder_and_own_attention_in_the_decoder(tmp_path: Path) -> None:
    """LED: a text is longer than a window, and whole windows or not."""
    import transformers

    bounds = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 32, "attention_window": [8, 4]}
    config = transformers.LEDConfig(**BART | bounds | {"encoder_layers": 2, "bos_token_id": 1, "decoder_start_token_id": 2})
    theirs = made("LEDForConditionalGeneration", tmp_path / "folder", config)
    bundle = build(str(tmp_path / "folder"), tmp_path / "bundle", precision=("fp32",))
    assert bundle.generation is not None and (bundle.generation.max_length, bundle.generation.source_length) == (32, 64)
    assert any("global_attention_mask" in note for note in bundle.manifest.value["provenance"]["notes"])
    with load(tmp_path / "bundle", threads=1) as ours:
        agrees(theirs, ours)
        beams_agree(theirs, ours, [[7, 8, 9, 10] * 4, [*range(5, 42)], [10]], {})


def test_predicting_streams(tmp_path: Path) -> None:
    """ProphetNet, whose answers are those of its `generate`: its class over a whole text gives others."""
    import transformers

    parts = ("encoder", "decoder")
    sizes = {f"num_{part}_layers": 2 for part in parts} | {f"num_{part}_attention_heads": 4 for part in parts}
    config = transformers.ProphetNetConfig(
        vocab_size=97, hidden_size=32, encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=32, num_buckets=8,
        relative_max_distance=12, ngram=3, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, **sizes,
    )  # fmt: skip
    theirs = made("ProphetNetForConditionalGeneration", tmp_path / "folder", config)
    bundle = build(str(tmp_path / "folder"), tmp_path / "bundle", precision=("fp32",))
    assert bundle.generation is not None and bundle.generation.max_length == 30
    with load(tmp_path / "bundle", threads=1) as ours:
        agrees(theirs, ours, stepped_logits)
        beams_agree(theirs, ours, [[7, 8, 9], [10], [*range(20, 40)]], {})
        assert ours.engine is not None
        (longest,) = Generator(ours.engine, None, None, ours.engine.config.plain()).generate(
            [[7, 8, 9]], [[]], Options(beam=1, min_new_tokens=29, max_new_tokens=29), Watch()
        )
        expected = stepped_logits(theirs, [7, 8, 9], [1, *longest.tokens])[:-1].log_softmax(-1)
        np.testing.assert_allclose(longest.token_logprobs, expected[torch.arange(29), torch.tensor(longest.tokens)].numpy(), atol=1e-4)


def test_streams_that_cannot_go_on_from_their_own_cache_are_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.ProphetNetConfig(
        vocab_size=97, hidden_size=32, num_encoder_layers=1, num_decoder_layers=1, num_encoder_attention_heads=4, encoder_ffn_dim=40,
        num_decoder_attention_heads=4, decoder_ffn_dim=40, max_position_embeddings=64, pad_token_id=3,
    )  # fmt: skip
    made("ProphetNetForConditionalGeneration", tmp_path / "folder", config)
    with pytest.raises(CheckpointError, match="pad_token_id is 3, expected 0"):
        export(str(tmp_path / "folder"))


def test_a_decoder_that_masks_nothing_since_it_is_asked_for_one_token_a_time(tmp_path: Path) -> None:
    """FSMT, whose head is none that its class names, and whose positions begin behind the padding id."""
    import transformers

    sizes = {"src_vocab_size": 97, "tgt_vocab_size": 97, "langs": ["en", "de"], "pad_token_id": 1, "bos_token_id": 0}
    theirs = made("FSMTForConditionalGeneration", tmp_path / "folder", transformers.FSMTConfig(**BART | sizes))
    build(str(tmp_path / "folder"), tmp_path / "bundle", precision=("fp32",))
    with load(tmp_path / "bundle", threads=1) as ours:
        agrees(theirs, ours, stepped_logits)


class Translator:
    """A model that translates between many languages: transformers' and the bundle's."""

    def __init__(self, folder: Path) -> None:
        import transformers

        self.tokenizer = language_tokenizer(folder / "source", "mbart50", TEXTS)
        special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None}
        config = transformers.MBartConfig(**(BART | special | {"vocab_size": len(self.tokenizer)}))
        self.model, self.bundle = made("MBartForConditionalGeneration", folder / "source", config), folder / "bundle"
        build(str(folder / "source"), self.bundle, precision=("fp32", "int8"))

    def ids(self, language: str) -> list[list[int]]:
        """Sources of a language."""
        self.tokenizer.src_lang = language
        found: list[list[int]] = self.tokenizer(TEXTS)["input_ids"]
        self.tokenizer.src_lang = "en_XX"
        return found


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Translator:
    return Translator(tmp_path_factory.mktemp("translator"))


def test_positions_of_each_row(translator: Translator) -> None:
    with load(translator.bundle, precision="fp32", threads=1) as ours:
        agrees(translator.model, ours)


def test_languages_of_source_and_answer(translator: Translator) -> None:
    target = translator.tokenizer.convert_tokens_to_ids("de_DE")
    with load(translator.bundle, precision="fp32", threads=1) as ours:
        sources = translator.ids("fr_XX")
        beams_agree(translator.model, ours, sources, {"forced_bos_token_id": target}, tgt_lang="de_DE")
        by_text = ours.generate(TEXTS, beam=2, max_new_tokens=NEW, src_lang="fr_XX", tgt_lang="de_DE")
        by_ids = ours.generate(sources, beam=2, max_new_tokens=NEW, tgt_lang="de_DE")
        assert [one.tokens for one in by_text] == [one.tokens for one in by_ids]
        assert all(one.tokens[0] == target for one in by_text) and "de_DE" not in str(by_text[0].text)
        stream = ours.stream(TEXTS[0], src_lang="fr_XX", tgt_lang="de_DE", max_new_tokens=NEW)
        assert "".join(stream) == ours.generate(TEXTS[0], beam=1, src_lang="fr_XX", tgt_lang="de_DE", max_new_tokens=NEW)[0].text


def test_without_a_language_answers_are_those_of_generate(translator: Translator) -> None:
    with load(translator.bundle, precision="fp32", threads=1) as ours:
        beams_agree(translator.model, ours, translator.ids("en_XX"), {})
        tokens = [one.tokens for one in ours.generate(translator.ids("en_XX"), beam=1, max_new_tokens=NEW)]
        assert [one.tokens for one in ours.generate(TEXTS, beam=1, max_new_tokens=NEW)] == tokens


def test_languages_on_the_command_line(translator: Translator) -> None:
    with load(translator.bundle, precision="fp32", threads=1) as ours:
        expected = ours.generate(TEXTS[0], max_new_tokens=NEW, src_lang="fr_XX", tgt_lang="de_DE")[0].text
    options = ["--precision", "fp32", "--max-new-tokens", str(NEW), "--src-lang", "fr_XX", "--tgt-lang", "de_DE"]
    assert invoke("run", str(translator.bundle), *options, TEXTS[0]).stdout == f"{expected}\n"


def test_a_language_that_is_not_there_is_wrong_usage(translator: Translator, plain_bundle: Bundle) -> None:
    with (
        load(translator.bundle, threads=1) as ours,
        pytest.raises(UsageError, match=r"tgt_lang is .xx., this model has af_ZA, .* and 44"),
    ):
        ours.generate(TEXTS[0], tgt_lang="xx")
    with load(translator.bundle, threads=1) as ours, pytest.raises(UsageError, match="src_lang is 5, expected the code of a language"):
        ours.generate(TEXTS[0], src_lang=5)  # type: ignore[arg-type]
    with load(plain_bundle.path, threads=1) as ours, pytest.raises(UsageError, match="this bundle names no languages"):
        ours.generate([[1, 2]], tgt_lang="de_DE")


def test_a_canonical_family_answers_alike_on_both_routes(tmp_path: Path) -> None:
    import transformers

    config = transformers.BartConfig(**BART, bos_token_id=1, decoder_start_token_id=2, forced_eos_token_id=None)
    theirs = made("BartForConditionalGeneration", tmp_path / "folder", config)
    build(str(tmp_path / "folder"), tmp_path / "bundle", precision=("fp32",), route="attention-interface")
    with load(tmp_path / "bundle", threads=1) as ours:
        agrees(theirs, ours)


def test_attention_that_is_not_known_is_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.MvpConfig(**BART, use_prompt=True, prompt_length=4, prompt_mid_dim=8)
    made("MvpForConditionalGeneration", tmp_path / "folder", config)
    with pytest.raises(CheckpointError, match=r"MvpForConditionalGeneration's decoder cannot be replaced: .*not multiplied in a way"):
        export(str(tmp_path / "folder"))
