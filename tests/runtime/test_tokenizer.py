"""Text that grows token by token is the text of all tokens, and no piece holds half a character."""

import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from onnxport.errors import BundleError, TextError
from onnxport.runtime.tokenizer import UNKNOWN_FROM, UNKNOWN_IS, TextStream, TextTokenizer

TEXTS = ["Grüße, Welt!  Wie geht's?", "日本語 テキスト 🙂🚀👩‍👩‍👧", "a b  c\n\td", "Ünïcödé", " leading and trailing "]


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made


def byte_fallback(strip: bool) -> Tokenizer:
    words = ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "ab", "▁the", "ü"]
    vocabulary = {f"<0x{b:02X}>": b for b in range(256)} | {w: 256 + i for i, w in enumerate(words)} | {"<unk>": 400}
    made = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return made


def metaspace() -> Tokenizer:
    words = ["<unk>", "▁", "▁a", "b", "▁the", "c", "▁,", ".", "▁▁"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return made


def word_piece() -> Tokenizer:
    words = ["[UNK]", "do", "n", "'", "t", "##ing", "hello", ",", ".", "un", "##able", "!"]
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece(cleanup=True)
    return made


def suffixed() -> Tokenizer:
    words = ["<unk>", "a", "b", "c</w>", "hello</w>", "x</w>"]
    made = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], end_of_word_suffix="</w>", unk_token="<unk>"))
    made.decoder = decoders.BPEDecoder("</w>")
    return made


MADE = {
    "byte_level": byte_level,
    "byte_fallback": lambda: byte_fallback(False),
    "byte_fallback_strip": lambda: byte_fallback(True),
    "metaspace": metaspace,
    "word_piece": word_piece,
    "suffixed": suffixed,
}


@pytest.fixture(params=sorted(MADE))
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> TextTokenizer:
    made = MADE[request.param]()
    made.add_special_tokens([AddedToken("<end>", special=True)])
    made.save(str(tmp_path / "tokenizer.json"))
    return TextTokenizer(tmp_path / "tokenizer.json")


def pieces(tokenizer: TextTokenizer, ids: list[int], stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream, found = TextStream(tokenizer, stops), []
    for token in ids:
        found.append(stream.push(token))
        if stream.stopped:
            break
    return [*found, stream.finish()], stream


def test_pieces_join_to_the_decoded_text(tokenizer: TextTokenizer) -> None:
    rng = random.Random(3)
    size = tokenizer._tokenizer.get_vocab_size()
    for _ in range(400):
        ids = [rng.randrange(size) for _ in range(rng.randrange(25))]
        found, stream = pieces(tokenizer, ids)
        assert "".join(found) == stream.text == tokenizer.decode(ids), ids


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_holds_half_a_character(tmp_path: Path, name: str, text: str) -> None:
    MADE[name]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    ids = tokenizer.encode([text])[0] if name == "byte_level" else list(text.encode())
    found, _ = pieces(tokenizer, ids)
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)
    if name == "byte_level":
        assert sum(bool(piece) for piece in found) > len(text) / 3  # text comes as it is made, not at the end


def test_a_character_that_never_ends_comes_at_the_end(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    ids = tokenizer.encode(["a🙂"])[0][:-1]
    found, _ = pieces(tokenizer, ids)
    assert found[0] == "a"
    assert found[1:-1] == [""] * 3
    assert "".join(found) == tokenizer.decode(ids)


def test_stop_strings_cut_wherever_tokens_end(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    for text, stops, expected in [
        ("one END two", ("END",), "one "),
        ("one EN two", ("END",), "one EN two"),
        ("one EN", ("END",), "one EN"),
        ("ababac", ("abac",), "ab"),
        ("xéy", ("é",), "x"),
        ("abc", ("c", "bc"), "a"),
        ("a", ("a",), ""),
    ]:
        found, stream = pieces(tokenizer, tokenizer.encode([text])[0], stops)
        assert "".join(found) == expected
        assert stream.stopped == (expected != text)


def test_text_that_may_begin_a_stop_string_waits(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    found, _ = pieces(tokenizer, tokenizer.encode(["aEEN!"])[0], ("END",))
    assert found == ["a", "", "E", "", "EN!", ""]


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    made = byte_level()
    made.enable_truncation(3)
    made.enable_padding(length=10)
    made.save(str(tmp_path / "tokenizer.json"))
    assert [len(ids) for ids in TextTokenizer(tmp_path / "tokenizer.json").encode(["abcdef", "a"])] == [6, 1]


def unigram(*rows: tuple[str, float]) -> Tokenizer:
    return Tokenizer(models.Unigram([("</s>", -50.0), ("<unk>", -50.0), ("a", -2.0), ("b", -2.0), *rows], 1, False))


def test_pieces_behind_the_last_id_cut_the_text_and_are_unknown(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    unigram((UNKNOWN_FROM, 0.0), (f"{UNKNOWN_IS}<unk>", 0.0), ("ab", -1.0)).save(str(path))
    assert TextTokenizer(path).encode(["aba", "ababb", "c"]) == [[1, 2], [1, 1, 3], [1]]


@pytest.mark.parametrize("after", [[], [("ab", -1.0)], [(f"{UNKNOWN_IS}<none>", 0.0)]])
def test_a_last_id_without_an_unknown_token_is_refused(tmp_path: Path, after: list[tuple[str, float]]) -> None:
    path = tmp_path / "tokenizer.json"
    unigram((UNKNOWN_FROM, 0.0), *after).save(str(path))
    with pytest.raises(BundleError, match="names no unknown token"):
        TextTokenizer(path)


def panicking() -> Tokenizer:
    """One whose library panics in Rust on texts that begin with `a`: characters inserted at the front have no origin."""
    made = metaspace()
    made.normalizer = normalizers.Sequence([normalizers.Replace(Regex("(?=a)"), "xx"), normalizers.NFD()])
    return made


def test_a_panic_of_the_library_is_a_refused_text(tmp_path: Path) -> None:
    with pytest.raises(BaseException) as raw:
        panicking().encode("ab")
    assert not isinstance(raw.value, Exception)
    panicking().save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode(["the", "b"]) == metaspace_ids("the", "b")
    with pytest.raises(TextError, match=r"^the tokenizer cannot encode 'ab' \(.*\); change the text or give token ids$"):
        tokenizer.encode(["the", "ab", "b"])


def metaspace_ids(*texts: str) -> list[list[int]]:
    return [metaspace().encode(text).ids for text in texts]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_not_the_librarys_own_passes(error: type[BaseException]) -> None:
    class Interrupted:
        def encode_batch(self, *given: object, **options: object) -> None:
            raise error

    tokenizer = TextTokenizer(metaspace().to_str().encode())
    tokenizer._tokenizer = Interrupted()
    with pytest.raises(error):
        tokenizer.encode(["a"])


def test_bytes_are_as_good_as_a_path(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    unigram((UNKNOWN_FROM, 0.0), (f"{UNKNOWN_IS}<unk>", 0.0), ("ab", -1.0)).save(str(path))
    assert TextTokenizer(path.read_bytes()).encode(["ababb"]) == TextTokenizer(path).encode(["ababb"]) == [[1, 1, 3]]
    with pytest.raises(BundleError, match=r"^tokenizer.json: not a usable tokenizer"):
        TextTokenizer(b"{}")


@pytest.mark.parametrize("cut_first", [False, True])
def test_windows_have_the_characters_of_the_whole_text(cut_first: bool) -> None:
    from support.task_folders import SAMPLE, byte_level

    tokenizer = TextTokenizer(byte_level().to_str().encode())
    (whole,) = tokenizer.read([(SAMPLE, None)])
    places = set(zip(whole.ids, whole.offsets, strict=True))
    for other in (None, "the dog"):
        text, pair = (SAMPLE, other) if cut_first or other is None else (other, SAMPLE)
        pieces = tokenizer.cut(text, pair, 24, 7, cut_first and other is not None)
        assert len(pieces) > 3
        side = 0 if cut_first or other is None else 1
        for piece in pieces:
            for token, offsets, special, place in zip(
                piece.encoding.ids, piece.offsets, piece.encoding.special_tokens_mask, piece.encoding.sequence_ids, strict=True
            ):
                assert offsets == (0, 0) if special else place not in (side, None) or (token, offsets) in places
