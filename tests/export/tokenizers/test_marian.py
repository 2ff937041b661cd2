"""A converted Marian tokenizer gives the ids and the text that transformers' MarianTokenizer gives, on plain and on nasty text."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from onnxport.errors import CheckpointError
from onnxport.export.tokenizers.folder import FolderTokenizers, hugging_face
from onnxport.runtime.tokenizer import TextStream, TextTokenizer
from support import tokenizer_folders as spm
from support.paths import EXAMPLE

ROWS = [line.split("\t") for line in (EXAMPLE / "test-200.tsv").read_text("utf-8").splitlines()]
PLAIN = {"source": [row[0] for row in ROWS], "target": [row[1] for row in ROWS]}
NASTY = [
    *["", " ", "   ", "\t", "\n", "a\tb", "a\r\nb", "  leading", "trailing  ", "in   between", "\u00a0nbsp\u00a0", "\u3000wide\u3000"],
    *[
        "Hello 🙂",
        "👩‍👩‍👧 x",
        "👍🏽 🇩🇪",
        "日本語 テキスト",
        "你好",
        "Привет мир",
        "e\u0301te\u0301 A\u030a",
        "\uff21\u0301 x",
        "\u1100\u1161\u11a8",
    ],
    *[
        "\x00",
        "a\x00b",
        "\x01\x02x",
        "\x7f\x80\x9f",
        "zero\u200bwidth",
        "\ufeffbom",
        "x\u00ady",
        "\u202ertl\u202c",
        "\U0010ffff",
        "word" * 200,
    ],
    *[
        ">>de<< Hello",
        " >>de<< Hello",
        ">>xx<< Hello",
        ">>de<<Hello",
        ">>de<<",
        ">>de<<   ",
        ">>de<< >>de<< x",
        "a >>de<< b",
        ">>zho_Hant<< x",
    ],
    *[
        ">>a b<< c",
        ">>open",
        "<<>> x",
        ">><< x",
        "</s> text",
        "text </s> more",
        "<unk> x",
        "a<pad>b",
        "<s> x",
        "＜/s＞ full",
        "＜unk＞",
        "<0x41>",
    ],
    *[
        "▁ ▁▁ a▁b ▁",
        "ü",
        "üß",
        "ü日本",
        "日ü本",
        "Tōkyō",
        "ＦＵＬＬ ｗｉｄｔｈ",
        "ﬁ ﬂ ½ ™",
        "!!!!!!!!",
        "......",
        "hahahahaha",
        "aaaaaaaaaaaa",
        "¨x´",
    ],
    *["😀😀 a😀b", "<sep> x<sep>y< sep>", "＜sep＞", "don't they've Hello , world !", "\ufdd0ü\ufdd1", "\ufdd3", "\ufdef", "İı ſ K Å"],
]
KINDS: dict[str, dict[str, Any]] = {
    "unigram": {},
    "bpe": {"model_type": "bpe"},
    "byte_fallback": {"byte_fallback": True},
    "identity": {"normalization_rule_name": "identity"},
    "case_folded": {"normalization_rule_name": "nfkc_cf"},
    "symbols": {"user_defined_symbols": ["<sep>", "😀", "Tom"]},
    "codes": {"codes": [">>de<<", ">>zho_Hant<<"]},
    "separate": {"separate": True},
    "clean_up": {"config": {"clean_up_tokenization_spaces": True}},
    "added": {"config": {"additional_special_tokens": ["<eop>", "</x>"]}},
}


def make(folder: Path, kind: str) -> Path:
    size = 600 if "byte_fallback" in KINDS[kind] else 300
    spm.marian_tokenizer(folder, *PLAIN.values(), size, **({"character_coverage": 0.99} | KINDS[kind]))
    return folder


def drop_pieces(folder: Path) -> None:
    """Marian's vocabulary lacks pieces that its corpus never had."""
    ids = json.loads((folder / "vocab.json").read_bytes())
    kept = [token for token in ids if token in ("</s>", "<unk>", "<pad>") or random.Random(token).random() > 0.1]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(kept)}))


def converted(folder: Path, place: Path, model_type: str = "marian") -> dict[str, TextTokenizer]:
    made = hugging_face(folder, model_type).by_side
    for side, data in made.items():
        (place / f"{side}.json").write_bytes(data)
    return {side: TextTokenizer(place / f"{side}.json") for side in made}


def texts(side: str) -> list[str]:
    rng = random.Random(5)
    pool = [*"aeiouß üö日.,!'<>/s▁ \t\u200b🙂éñ1Ａ²\x00", "the", "</s>", ">>de<<", "Tom", " is", "er", "<sep>"]
    return PLAIN[side] + NASTY + ["".join(rng.choices(pool, k=rng.randrange(1, 25))) for _ in range(300)]


@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_ids_and_text_are_those_of_marian_tokenizer(tmp_path: Path, kind: str, lacking: bool) -> None:
    transformers = pytest.importorskip("transformers")
    folder = make(tmp_path / "model", kind)
    if lacking and kind != "byte_fallback":
        drop_pieces(folder)
    reference = transformers.MarianTokenizer.from_pretrained(folder, local_files_only=True)
    sides = converted(folder, tmp_path)
    assert reference.unk_token_id == 1
    for side, argument in (("source", "text"), ("target", "text_target")):
        given = [t for t in texts(side) if not ("byte_fallback" in kind and any("\ufdd0" <= c <= "\ufdef" for c in t))]
        expected = [reference(**{argument: text}).input_ids for text in given]
        for text, ids, found in zip(given, expected, sides[side].encode(given), strict=True):
            if kind == "separate" and side == "target" and reference.pad_token_id in ids:
                continue  # transformers knows one id of <pad> only, the source's, which is a piece of the target's vocabulary
            assert found == ids, ascii(text)
            if kind != "separate" or reference.pad_token_id not in ids:
                assert sides["target"].decode(ids) == reference.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["unigram", "clean_up", "byte_fallback", "symbols"])
def test_pieces_of_a_stream_join_to_the_decoded_text(tmp_path: Path, kind: str) -> None:
    tokenizer = converted(make(tmp_path / "model", kind), tmp_path)["target"]
    rows = tokenizer.encode([*PLAIN["target"][:60], *NASTY, "do n't a , b ' c 's  .", "it 's ' ' n't 've"])
    rng = random.Random(3)
    rows += [[rng.randrange(300) for _ in range(rng.randrange(30))] for _ in range(200)]
    for ids in rows:
        stream = TextStream(tokenizer)
        pieces = [*(stream.push(token) for token in ids), stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids), ids


def test_the_bytes_are_the_same_every_time_and_files_are_named(tmp_path: Path) -> None:
    folder = make(tmp_path, "unigram")
    found = hugging_face(folder, "marian")
    first, files = found.by_side, found.files
    assert first == hugging_face(folder, "marian").by_side
    assert sorted(path.name for path in files) == ["source.spm", "target.spm", "tokenizer_config.json", "vocab.json"]
    assert first["source"] != first["target"]
    (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
    shared = hugging_face(folder, "marian").by_side
    assert shared["source"] == shared["target"] == first["source"]


def test_a_bare_tokenizer_json_is_used_where_a_marian_folder_has_no_spm_files(tmp_path: Path) -> None:
    folder = make(tmp_path, "unigram")
    found = hugging_face(folder, "marian")
    made = found.by_side
    ready = folder / "tokenizer.json"
    ready.write_bytes(made["target"])
    assert hugging_face(folder, "marian") == found  # the .spm files go first
    (folder / "source.spm").unlink()
    with pytest.raises(CheckpointError, match=r"has no source\.spm"):
        hugging_face(folder, "marian")
    (folder / "target.spm").unlink()
    (folder / "tokenizer_config.json").unlink()
    alone = hugging_face(folder, "marian")
    assert alone.by_side == {"source": made["target"], "target": made["target"]} and alone.files == (ready,)
    (folder / "config.json").write_text('{"model_type": "marian"}')
    known = hugging_face(folder, "marian")
    assert known.by_side == alone.by_side
    assert known.notes == ("tokenizer.json is taken as it is: transformers has no tokenizer for a marian model with this file",)
    ready.write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a usable tokenizer"):
        hugging_face(folder, "marian")


@pytest.mark.parametrize("kind", ["marian", "bart", "gpt2"])
def test_a_folder_without_tokenizer_files_has_none(tmp_path: Path, kind: str) -> None:
    assert hugging_face(tmp_path, kind) == FolderTokenizers()


def test_damaged_and_disagreeing_files_are_refused_in_one_line(tmp_path: Path) -> None:
    def refused(name: str, data: bytes | None, *expected: str) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        make(folder, "unigram")
        (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            hugging_face(folder, "marian")
        assert "\n" not in str(caught.value)
        assert all(part in str(caught.value) for part in (name, *expected)), str(caught.value)

    refused("source.spm", None, "has no source.spm")
    refused("target.spm", b"\xff\xfe\x00damaged", "not a SentencePiece model")
    refused("vocab.json", b'{"a": 0', "is not valid JSON")
    refused("vocab.json", b"[1, 2]", "JSON list")
    refused("vocab.json", b'{"</s>": 0, "<unk>": 0}', "2 tokens and 1 different ids")
    refused("vocab.json", b'{"</s>": 0, "<unk>": 5}', "no gaps")
    refused("vocab.json", b'{"</s>": 0, "<unk>": "x"}', "not whole numbers")
