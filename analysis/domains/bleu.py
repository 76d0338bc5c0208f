"""Corpus BLEU from counts that add up over sentences, so that any resample of a test set can be scored again.

A sentence's counts are COUNT_NAMES: tokens of the translation and of its reference, then, for n = 1 ... 4, the n-grams
that both share, then those of the translation.
"""

import numpy as np
from numpy.typing import ArrayLike

from analysis.uncertainty import bootstrap

ORDERS = 4
COUNT_NAMES = (
    "translation_length", "reference_length",
    *(f"shared_{n}_grams" for n in range(1, ORDERS + 1)), *(f"translated_{n}_grams" for n in range(1, ORDERS + 1)),
)  # fmt: skip
RESAMPLES = 1000


def corpus_bleu(counts: ArrayLike) -> np.ndarray:
    """BLEU of texts whose sentences' counts were added up, as a fraction.

    Args:
        counts: (..., COUNT_NAMES), sums over the sentences of each text.
    Returns:
        (...), in [0, 1]; 0 where no word is shared.
    Source: Papineni et al. 2002 with the smoothing of mteval-v13a, sacrebleu's default ("smooth:exp", Post 2018): the
        k-th n-gram order without a match counts 1 / 2^k matches.
    """
    counts = np.asarray(counts, dtype=np.float64)
    length, reference = counts[..., 0], counts[..., 1]
    shared, total = counts[..., 2 : 2 + ORDERS], counts[..., 2 + ORDERS :]
    missed = np.cumsum(shared == 0, axis=-1)
    matches = np.where(shared == 0, 0.5**missed, shared)
    known = (shared[..., 0] > 0) & (total > 0).all(axis=-1)
    logs = np.log(matches / np.maximum(total, 1)).mean(axis=-1)
    brevity = np.minimum(0.0, 1 - reference / np.maximum(length, 1))
    return np.where(known, np.exp(logs + brevity), 0.0)


def bleu_replicates(counts: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """BLEU of the test set, then of as many others drawn from its sentences, (1 + resamples,).

    Two systems on the same sentences are compared on the same draws: the replicates' differences are those of the
    paired bootstrap (Koehn 2004).

    Args:
        counts: (sentences, COUNT_NAMES).
    """
    sums = bootstrap.resampled_sums(counts.astype(np.float64), resamples, np.random.default_rng(seed))
    return np.concatenate([corpus_bleu(part) for part in sums])


def bleu_stderr(counts: np.ndarray) -> float:
    """Standard error of corpus BLEU over sentences, (sentences, COUNT_NAMES), by a seeded bootstrap."""
    return bootstrap.standard_error(bleu_replicates(counts), len(counts))
