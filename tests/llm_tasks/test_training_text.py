"""Windows to train on: which are drawn, and that none shares text with calibration or evaluation."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from llm_tasks.recovery.training_text import hashes, training_windows


class Letters:
    """A tokenizer whose tokens are the numbers in a text."""

    is_fast = False
    eos_token_id = 0

    def __call__(self, texts, return_special_tokens_mask=False, **_):
        many = [texts] if isinstance(texts, str) else texts
        ids = [[int(word) for word in text.split()] for text in many]
        found = ids[0] if isinstance(texts, str) else ids
        return {"input_ids": found, "special_tokens_mask": [0] * len(found)}

    def get_added_vocab(self):
        return {}


def text_of(*numbers: int) -> str:
    return " ".join(map(str, numbers))


def test_equal_runs_of_tokens_have_equal_hashes_and_others_do_not():
    windows = np.array([[1, 2, 3, 4], [9, 1, 2, 3]])
    found = hashes(windows, 3)
    assert found[0, 0] == found[1, 1] and len(np.unique(found)) == 3
    assert hashes(np.array([[3, 2, 1]]), 3) != hashes(np.array([[1, 2, 3]]), 3)
    assert len(np.unique(hashes(np.arange(10**5)[None], 2))) == 10**5 - 1


def test_windows_by_hand():
    """Two documents of three numbers, joined by 0, in windows of two; the last number is left over."""
    drawn = training_windows(Letters(), [text_of(1, 2, 3), text_of(4, 5, 6)], 9, 2, seed=0)
    first, second = sorted(drawn.tokens.tolist()[0::2]), drawn.tokens.tolist()
    assert drawn.tokens.shape == (3, 2) and drawn.left_out == 0
    assert second in ([[1, 2], [3, 0], [4, 5]], [[4, 5], [6, 0], [1, 2]]) and first == [[1, 2], [4, 5]]
    assert drawn.tokens.dtype == torch.int64


def test_no_window_shares_a_run_of_tokens_with_calibration_or_evaluation():
    """A brute-force twin looks for every run of 32 tokens in both; windows are drawn on until there are enough."""
    draw = np.random.default_rng(0)
    documents = [draw.integers(1, 1000, 200).tolist() for _ in range(40)]
    calibration = torch.tensor([document[10:110] for document in documents[:9]])
    evaluation = torch.tensor([document[50:140] for document in documents[9:15]])
    texts = [text_of(*document) for document in documents]
    drawn = training_windows(Letters(), texts, 60, 64, 3, [calibration, evaluation])
    known = {
        tuple(row[i : i + 32])
        for own in (calibration, evaluation)
        for row in own.tolist()
        for i in range(len(row) - 31)
    }
    assert drawn.tokens.shape == (60, 64) and drawn.left_out > 5
    runs = [tuple(row[i : i + 32]) for row in drawn.tokens.tolist() for i in range(33)]
    assert not known & set(runs)
    free = training_windows(Letters(), texts, 60 + drawn.left_out, 64, 3)
    kept = [row for row in free.tokens.tolist() if not known & {tuple(row[i : i + 32]) for i in range(33)}]
    assert kept == drawn.tokens.tolist()


def test_the_seed_draws_and_fewer_windows_are_the_first_ones():
    texts = [text_of(*range(start, start + 50)) for start in range(1, 3000, 50)]
    many, few, other = (
        training_windows(Letters(), texts, *asked).tokens for asked in ((40, 8, 1), (7, 8, 1), (7, 8, 2))
    )
    assert torch.equal(many[:7], few) and not torch.equal(few, other)


def test_text_that_is_all_evaluated_on_or_too_short_is_refused(tiny_decoder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    with pytest.raises(ValueError, match="calibrated or evaluated on altogether"):
        training_windows(Letters(), [text_of(*range(1, 9))], 1, 8, 0, [torch.arange(1, 9)[None]])
    with pytest.raises(ValueError, match="no window of 40 tokens is there to train on: it has 4 tokens"):
        training_windows(tokenizer, ["good film and story"], 1, 40, 0)
