"""The texts that come with the kit: what variants are judged on and what schemes are calibrated on have nothing in common."""

import re

from onnxport.compare.texts import Sample, calibration_texts, golden_texts, token_rows
from onnxport.runtime.tasks.chat import ChatTemplate
from onnxport.runtime.tokenizer import TextTokenizer
from support import tiny_bundles

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def _sentences(samples: tuple[Sample, ...]) -> set[str]:
    parts = (part.strip() for sample in samples for part in re.split(r"(?<=[.!?。])\s+|\n", sample.text))
    return {part for part in parts if len(part) > 12}


def test_no_sentence_is_judged_on_and_calibrated_on() -> None:
    golden, calibration = _sentences(golden_texts()), _sentences(calibration_texts())
    assert len(golden) > 60 and len(calibration) > 100
    assert golden & calibration == set()


def test_both_hold_several_languages_code_and_conversations() -> None:
    for samples in (golden_texts(), calibration_texts()):
        assert {"en", "de", "fr", "es", "zh", "ja", "ru", "python"} <= {sample.language for sample in samples}
        assert sum(bool(sample.messages) for sample in samples) >= 2
        assert all(sample.text.strip() for sample in samples)
        assert 1500 < max(len(sample.text) for sample in samples) < 2500


def test_conversations_go_through_the_models_template() -> None:
    talk = Sample("en", "Who?\n\nMe.", ({"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}))
    assert talk.rendered(ChatTemplate(TEMPLATE, {})) == "<user>Who?<assistant>Me."
    assert talk.rendered(ChatTemplate("{{ raise_exception('no') }}", {})) is None
    assert Sample("en", "Me.").rendered(ChatTemplate(TEMPLATE, {})) is None


def test_rows_are_cut_and_hold_only_ids_that_the_model_has() -> None:
    tokenizer = TextTokenizer(tiny_bundles.tokenizer("causal").to_str().encode())
    samples = [Sample("en", "w8 w5 w6 w7"), Sample("en", "w9 w4 w8")]
    whole = [tokenizer.encode([sample.text])[0] for sample in samples]
    assert len(whole[0]) >= 4
    assert token_rows(samples, tokenizer) == whole
    assert token_rows(samples, tokenizer, most=3) == [row[:3] for row in whole]
    assert token_rows(samples, tokenizer, end=8) == [[i for i in row if i < 8] for row in whole]
    assert token_rows(samples, tokenizer, end=0) == []


def test_a_language_that_the_tokenizer_does_not_know_is_left_out() -> None:
    tokenizer = TextTokenizer(tiny_bundles.tokenizer("causal").to_str().encode())
    assert token_rows([Sample("en", "no word of this is known")], tokenizer) == []
