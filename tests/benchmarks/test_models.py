import json

import pytest
import torch
from models import make_tokenizer, write_vocabulary
from narrow import COPIES, Head, Reads, Table, Writes
from torch.nn import functional as F
from train_narrow import encode, epoch, warmth


@pytest.fixture
def wide_input():
    return torch.randn(3, 32, generator=torch.Generator().manual_seed(0))


def test_a_narrow_layer_written_out_gives_the_same(wide_input):
    reads, writes = Reads(8, 5), Writes(5, 8)
    narrow = writes(F.silu(reads(wide_input)))
    wide = F.linear(F.silu(F.linear(wide_input, *reads.unfold())), *writes.unfold())
    assert wide.shape == narrow.shape == (3, 32)
    torch.testing.assert_close(wide, narrow)


def test_the_head_is_the_product_with_the_wide_table(wide_input):
    table = Table(11, 8)
    assert table(torch.tensor([4])).shape == (1, 32)
    torch.testing.assert_close(table(torch.tensor([4]))[0], table.unfold()[4])
    torch.testing.assert_close(Head(table)(wide_input), wide_input @ table.unfold().T)
    assert COPIES == 4


def test_batches_hold_every_pair_once_and_no_more_tokens_than_allowed():
    pairs = [([1] * (i % 7 + 1), [i] * (i % 5 + 1)) for i in range(100)]
    batches = epoch(pairs, tokens=24, seed=3)
    assert sorted(pair[1][0] for batch in batches for pair in batch) == list(range(100))
    assert all(len(batch) * max(max(map(len, pair)) for pair in batch) <= 24 for batch in batches)


def test_the_learning_rate_rises_and_falls_to_nothing():
    assert warmth(0) == warmth(1) == 0
    assert warmth(1 / 8) == 1
    assert 0 < warmth(0.05) < warmth(0.1)
    assert 0 < warmth(0.9) < warmth(0.5) < 1


def test_tokenizer_files_have_the_asked_number_of_ids(tmp_path):
    texts = [f"{a} {b}" for a in ("the cat", "a dog", "one bird") for b in ("sings", "sleeps well", "runs home", "eats")]
    make_tokenizer(texts, tmp_path, 24)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    assert list(vocabulary.values()) == list(range(24))
    assert [piece for piece, i in vocabulary.items() if i in (0, 1, 23)] == ["</s>", "<unk>", "<pad>"]
    ((source, target),) = encode([["a dog sings", "a cat"]], tmp_path)
    assert source[-1] == target[-1] == 0
    assert 1 not in source


def test_vocabulary_files_are_what_marian_reads(tmp_path):
    write_vocabulary(tmp_path, ["</s>", "<unk>", "a", "<pad>"])
    assert json.loads((tmp_path / "vocab.json").read_text()) == {"</s>": 0, "<unk>": 1, "a": 2, "<pad>": 3}
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "MarianTokenizer"
