import numpy as np
import pytest
import torch
from peers.pooling import batches, feeds, mean
from shapes import byte_level, llama_model, read_lines, sentences, word_pieces

TEXTS = ["The cat sings in the morning.", "A dog sleeps all day long.", "One bird runs home again.", "Nobody knows what the cat eats."]


@pytest.mark.parametrize(("make", "size"), [(byte_level, 400), (word_pieces, 200)])
def test_a_tokenizer_has_exactly_the_models_entries(make, size):
    tokenizer = make(TEXTS, size)
    assert tokenizer.get_vocab_size() == size
    ids = tokenizer.encode(TEXTS[0]).ids
    assert max(ids) < size
    assert "cat sings" in tokenizer.decode(ids).lower()


def test_a_random_llama_does_not_end_nor_repeat_one_token():
    small = {"hidden_size": 768, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000}
    model = llama_model(1, 4.0, **small).eval()
    with torch.inference_mode():
        said = model.generate(torch.tensor([[5, 9, 300]]), do_sample=False, min_new_tokens=24, max_new_tokens=24)[0, 3:].tolist()
    assert len(set(said)) > 4
    assert not {0, 1} & set(said)
    torch.testing.assert_close(model.lm_head.weight, model.get_input_embeddings().weight)


def test_sentences_are_cut_at_their_ends(tmp_path):
    text = 'It was late. "Who is it?" asked\nHolmes, and rose.\n\nNo\n\nMr. Smith said nothing at all.\n'
    (tmp_path / "book.txt").write_text(text)
    assert list(sentences(tmp_path / "book.txt")) == ["It was late.", '"Who is it?" asked Holmes, and rose.', "Smith said nothing at all."]
    assert len(read_lines(tmp_path / "book.txt")) == 4


def test_pooling_leaves_padding_out():
    given = feeds([[7, 8, 9], [7]], pad=0)
    assert given["input_ids"].tolist() == [[7, 8, 9], [7, 0, 0]]
    hidden = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    assert mean(hidden, given["attention_mask"]).tolist() == [[1.0], [3.0]]
    assert list(batches([3, 1, 2], 2)) == [[1, 2], [0]]
