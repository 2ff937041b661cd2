"""Generation settings of a Hugging Face folder as those of a bundle, and what a bundle cannot do."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxport.errors import UsageError
from onnxport.export.config_checks import LENGTH, ROWS, WIDTH, Check, integer, number, one_of, read_json
from onnxport.runtime.bundle.manifest import SEARCH_FIELDS
from onnxport.runtime.options import Options

# transformers' name → (ours, what changes nothing)
FIELDS: dict[str, tuple[str, Any]] = {
    "forced_bos_token_id": ("forced_bos_id", None),
    "forced_eos_token_id": ("forced_eos_id", None),
    "suppress_tokens": ("suppressed", []),
    "begin_suppress_tokens": ("begin_suppressed", []),
    "bad_words_ids": ("bad_words", []),
    "no_repeat_ngram_size": ("no_repeat_ngram", 0),
    "encoder_no_repeat_ngram_size": ("encoder_no_repeat_ngram", 0),
    "num_beams": ("beam", 1),
    "length_penalty": ("length_penalty", 1.0),
    "early_stopping": ("early_stopping", False),
    "repetition_penalty": ("repetition_penalty", 1.0),
    "renormalize_logits": ("renormalize", False),
}
SAMPLING: dict[str, tuple[str, Any]] = {"temperature": ("temperature", 1.0), "top_k": ("top_k", 0), "top_p": ("top_p", 1.0)}
SEARCHED = frozenset([*SEARCH_FIELDS, "max_new_tokens"])  # what a bundle checks as it checks a caller's options
SAMPLING_DEFAULTS = {"temperature": 1.0, "top_k": 50}  # transformers' own when a model samples without saying
# what changes answers and is not ours to do, with the values that change nothing besides null
REFUSED: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (),
    "constraints": ([],),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_repetition_penalty": (1.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_decoder_ids": ([],),
    "guidance_scale": (1.0,),
    "is_assistant": (False,),
    "max_time": (),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0.0,),
    "prompt_lookup_num_tokens": (),
    "remove_invalid_values": (False,),
    "sequence_bias": ({}, []),
    "stop_strings": ([], ""),
    "token_healing": (False,),
    "use_mtp": (False,),
    "watermarking_config": (),
}
REFUSED_SAMPLING: dict[str, tuple[Any, ...]] = {  # nothing unless the model samples
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "min_p": (0.0,),
    "top_h": (),
    "typical_p": (1.0,),
}
LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens")
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
IGNORED = frozenset(  # caches, speed, and what a call gives back
    """_commit_hash _from_model_config transformers_version use_cache cache_implementation cache_config max_cache_len output_attentions
    output_hidden_states output_scores output_logits return_dict_in_generate num_assistant_tokens num_assistant_tokens_schedule
    assistant_confidence_threshold max_matching_ngram_size assistant_lookbehind target_lookbehind assistant_ensemble_weight speculation_type
    compile_config disable_compile continuous_batching_config low_memory prefill_chunk_size return_legacy_cache""".split()
)
SPEED = IGNORED - {"_commit_hash", "_from_model_config", "transformers_version", "use_cache", "return_legacy_cache"}
KNOWN = frozenset([*FIELDS, *SAMPLING, *REFUSED, *REFUSED_SAMPLING, *LENGTHS, *SPECIAL, "do_sample"]) | IGNORED


NEUTRAL: tuple[Any, ...] = (None, False, [], {})


def not_obeyed(path: Path) -> list[str]:
    """A sentence on the settings of a generation_config.json that a bundle passes over: of caches and speed, or of nobody."""
    if not path.is_file():
        return []
    values = read_json(path)
    found = sorted(name for name, value in values.items() if (name in SPEED and value not in NEUTRAL) or name not in KNOWN)
    return [f"{path.name}: {', '.join(found)} not obeyed: no answer of transformers' generate depends on it"] if found else []


class _Ids:
    """Takes token ids out of settings, and remembers those that are none."""

    def __init__(self, rows: int) -> None:
        self.rows, self.problems = rows, []  # type: int, list[str]

    def one(self, name: str, value: Any, rows: int | None = None) -> int | None:
        """An id below `rows` (the answers' vocabulary), or None."""
        bound = self.rows if rows is None else rows
        if value is not None and not (type(value) is int and 0 <= value < bound):
            self.problems.append(f"{name} is {value!r:.60}, expected an id from 0 to {bound - 1}")
            return None
        return value

    def several(self, name: str, value: Any) -> list[int]:
        """A list of ids from one or a list."""
        values = value if isinstance(value, list) else [value]
        return [found for one in values if (found := self.one(name, one)) is not None]

    def one_or_several(self, name: str, value: Any) -> int | list[int] | None:
        """One id as itself, several as a list."""
        found = self.several(name, value)
        return found if len(found) > 1 else found[0] if found else None

    def words(self, name: str, value: Any) -> list[list[int]]:
        """Lists of ids."""
        if not isinstance(value, list) or not all(isinstance(word, list) and word for word in value):
            self.problems.append(f"{name} is {value!r:.60}, expected lists of ids")
            return []
        return [self.several(name, word) for word in value]


def special_ids(config: Any, source_rows: int, rows: int, starts: bool) -> tuple[dict[str, Any], list[str]]:
    """pad, bos, eos and start of a transformers GenerationConfig as its `generate` takes them, and what is wrong with them.

    starts: answers start with an id of their own, as those of an encoder-decoder do.
    """
    ids = _Ids(rows)
    eos = ids.one_or_several("eos_token_id", config.eos_token_id)
    pad = ids.one("pad_token_id", config.pad_token_id, min(source_rows, rows))
    if config.pad_token_id is None:  # transformers pads with the end
        pad = eos[0] if isinstance(eos, list) else eos
    bos = ids.one("bos_token_id", config.bos_token_id)
    start = ids.one("decoder_start_token_id", config.decoder_start_token_id)
    start = bos if config.decoder_start_token_id is None else start
    if pad is None and not starts:
        pad = 0  # nothing real looks at what pads a decoder's rows on the right
    if pad is None and not ids.problems:
        ids.problems.append("neither pad_token_id nor eos_token_id is given, expected an id to pad with")
    if starts and start is None and not ids.problems:
        ids.problems.append("neither decoder_start_token_id nor bos_token_id is given, expected an id to start answers with")
    return {"pad_id": pad, "bos_id": bos, "eos_id": eos, "decoder_start_id": start if starts else None}, ids.problems


def read_generation(config: Any, rows: int, ends: list[int], starts: bool) -> tuple[dict[str, Any], list[str]]:
    """A transformers GenerationConfig as a bundle's settings, only what changes something, and everything that a bundle cannot do.

    `rows`: the vocabulary of the answers; `ends`: the ids that end one; `starts`: see special_ids. A language model's max_length and
    min_length count the prompt.
    """
    ids, found = _Ids(rows), {}  # type: _Ids, dict[str, Any]
    sampling = config.do_sample is True
    wanted = FIELDS | (SAMPLING if sampling else {})
    for name, (ours, neutral) in wanted.items():
        value = getattr(config, name, None)
        if value is None:
            value = SAMPLING_DEFAULTS.get(name)
        if value is not None and (value != neutral or name == "temperature"):  # a temperature is what makes a bundle sample
            found[ours] = READ[name](ids, name, value)
    if "bad_words" in found:  # transformers never forbids the end
        found["bad_words"] = [word for word in found["bad_words"] if word not in [[end] for end in ends]]
    for name in LENGTHS:
        if (value := getattr(config, name)) is not None:
            READ_LENGTH(ids, name, value)
    if not ids.problems:
        found |= _lengths(config, starts)
    refused = REFUSED | (REFUSED_SAMPLING if sampling else {})
    problems = [
        f"{name} is {value!r:.60}, which a bundle cannot do; remove it"
        for name, neutral in refused.items()
        if (value := getattr(config, name, None)) is not None and value not in neutral
    ]
    if sampling and found.get("beam", 1) > 1:
        problems.append(f"do_sample is True with num_beams {found['beam']}, which a bundle cannot do; set one of them off")
    kept = {name: value for name, value in found.items() if value != [] and value is not None}
    problems = [*ids.problems, *problems]
    return kept, problems or _unsearchable(kept)


def _unsearchable(settings: dict[str, Any]) -> list[str]:
    """What the decoding loop would refuse when the bundle is loaded."""
    try:
        Options(**{name: value for name, value in settings.items() if name in SEARCHED})
    except UsageError as error:
        return [str(error)]
    return []


def _lengths(config: Any, starts: bool) -> dict[str, int]:
    """max_length and min_length count the id that starts an answer, or the prompt; lengths of new tokens go before them."""
    found = {}
    for side in ("max", "min"):
        new, whole = getattr(config, f"{side}_new_tokens"), getattr(config, f"{side}_length")
        name = f"{side}_new_tokens" if starts or new is not None else f"{side}_total_tokens"
        count = new if new is not None else whole and whole - int(starts)
        if count and count > 0:
            found[name] = count
    return found


def _number(check: Check) -> Callable[[_Ids, str, Any], Any]:
    def read(ids: _Ids, name: str, value: Any) -> Any:
        if expected := check(value):
            ids.problems.append(f"{name} is {value!r:.60}, expected {expected}")
        return value

    return read


READ: Mapping[str, Callable[[_Ids, str, Any], Any]] = {
    "forced_bos_token_id": _Ids.one,
    "forced_eos_token_id": _Ids.one_or_several,
    "suppress_tokens": _Ids.several,
    "begin_suppress_tokens": _Ids.several,
    "bad_words_ids": _Ids.words,
    "no_repeat_ngram_size": _number(integer(0, LENGTH)),
    "encoder_no_repeat_ngram_size": _number(integer(0, LENGTH)),
    "num_beams": _number(integer(1, WIDTH)),
    "length_penalty": _number(number(-math.inf)),
    "early_stopping": _number(one_of(True, False, "never")),
    "repetition_penalty": _number(number(0)),
    "renormalize_logits": _number(one_of(True, False)),
    "temperature": _number(number(0)),
    "top_k": _number(integer(0, ROWS)),
    "top_p": _number(number(0)),
}
READ_LENGTH = _number(integer(0, LENGTH))
