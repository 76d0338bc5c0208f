"""analysis/domains/bleu.py: the formula by hand and against sacrebleu, and its bootstrap."""

import math

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from analysis import metrics

# "the cat sat on the mat" against "the cat sat on a mat": 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours
CAT = [6, 6, 5, 3, 2, 1, 6, 5, 4, 3]


def test_bleu_by_hand():
    assert float(metrics.corpus_bleu(CAT)) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    shorter = [6, 12, 5, 3, 2, 1, 6, 5, 4, 3]  # half as long as the reference: exp(1 - 2) of it
    assert float(metrics.corpus_bleu(shorter)) == pytest.approx(math.exp(-1) * float(metrics.corpus_bleu(CAT)))
    longer = [6, 3, 5, 3, 2, 1, 6, 5, 4, 3]  # no penalty
    assert float(metrics.corpus_bleu(longer)) == float(metrics.corpus_bleu(CAT))
    # two orders without a match count 1/2 and 1/4
    smoothed = [6, 6, 5, 3, 0, 0, 6, 5, 4, 3]
    assert float(metrics.corpus_bleu(smoothed)) == pytest.approx((5 / 6 * 3 / 5 * 0.5 / 4 * 0.25 / 3) ** 0.25)


@pytest.mark.parametrize(
    "counts",
    [[6, 6, 0, 0, 0, 0, 6, 5, 4, 3], [0, 6, 0, 0, 0, 0, 0, 0, 0, 0], [2, 2, 2, 1, 0, 0, 2, 1, 0, 0]],
    ids=["nothing shared", "empty", "no three words anywhere"],
)
def test_bleu_is_0_where_it_is_not_defined(counts: list[int]):
    assert float(metrics.corpus_bleu(counts)) == 0.0


def test_bleu_equals_sacrebleu_on_random_texts_also_of_resamples():
    draw = np.random.default_rng(0)
    metric = BLEU(tokenize="none")
    words = np.array(list("abcdefg"))
    references = [" ".join(draw.choice(words, size=draw.integers(1, 12))) for _ in range(40)]
    translations = [" ".join(np.append(draw.permutation(text.split())[:8], "a")) for text in references]
    translations[3] = ""
    pairs = zip(translations, [[text] for text in references], strict=True)
    scores = [BLEU(tokenize="none").sentence_score(*pair) for pair in pairs]
    counts = np.array([[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores])
    for rows in (range(40), range(5), draw.integers(40, size=40)):
        expected = metric.corpus_score([translations[i] for i in rows], [[references[i] for i in rows]]).score
        assert 100 * float(metrics.corpus_bleu(counts[list(rows)].sum(axis=0))) == pytest.approx(expected, abs=1e-9)


def test_replicates_begin_with_the_test_set_and_are_the_same_draws_for_two_systems():
    counts = np.array([CAT, [4, 4, 4, 3, 2, 1, 4, 3, 2, 1], [5, 6, 1, 0, 0, 0, 5, 4, 3, 2]] * 4)
    found = metrics.bleu_replicates(counts, resamples=20)
    assert found.shape == (21,) and found[0] == metrics.corpus_bleu(counts.sum(axis=0))
    assert np.array_equal(found, metrics.bleu_replicates(counts, resamples=20))
    assert np.ptp(found) > 0


def test_equal_sentences_have_no_standard_error():
    assert metrics.bleu_stderr(np.array([CAT] * 10)) == pytest.approx(0, abs=1e-12)
    assert metrics.bleu_stderr(np.array([CAT, [5, 6, 1, 0, 0, 0, 5, 4, 3, 2]] * 5)) > 0.01
