"""BLEU by sacrebleu. A file of its own, because a mistake or a complete run should not wait for its import."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU

from analysis.metrics import COUNT_NAMES

# Languages that 13a's splitting at spaces and punctuation does not cut into words, by the first letters of their code.
# Characters are what needs no other package; sacrebleu has its own way for Chinese.
TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char", "km": "char", "my": "char", "lo": "char", "bo": "char"}
DEFAULT_TOKENIZER = "13a"


class Bleu(NamedTuple):
    """How translations compare with their references.

    Fields:
        score: corpus BLEU as a fraction.
        signature: sacrebleu's, which says how it was computed.
        counts: per sentence, (sentences, COUNT_NAMES); BLEU of any of them is analysis.domains.bleu's of their sum.
    """

    score: float
    signature: str
    counts: np.ndarray


def bleu(translations: Sequence[str], references: Sequence[str], tokenizer: str) -> Bleu:
    """Corpus BLEU and what it is made of; one reference per translation."""
    corpus, sentence = BLEU(tokenize=tokenizer), BLEU(tokenize=tokenizer, effective_order=True)
    score = corpus.corpus_score(list(translations), [list(references)]).score / 100
    counts = np.empty((len(references), len(COUNT_NAMES)), dtype=np.int32)
    for row, translation, reference in zip(counts, translations, references, strict=True):
        found = sentence.sentence_score(translation, [reference])
        row[:] = found.sys_len, found.ref_len, *found.counts, *found.totals
    return Bleu(score, str(corpus.get_signature()), counts)


def tokenizer_for(language: str) -> str:
    """sacrebleu's tokenizer for a target language: that of TOKENIZERS, or DEFAULT_TOKENIZER."""
    return TOKENIZERS.get(language[:2].lower(), DEFAULT_TOKENIZER)
