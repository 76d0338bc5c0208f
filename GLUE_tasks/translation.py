"""Translation: tokenized rows of a task, and the BLEU of a model's translations."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from analysis.metrics import COUNT_NAMES, bleu_stderr
from GLUE_tasks import translation_data
from GLUE_tasks.classification import first_rows
from GLUE_tasks.runner import Inputs, Outcome
from GLUE_tasks.translation_data import Corpus, Pair
from harness import training

# sacrebleu's tokenizers for languages without spaces between words, by their codes of two (mBART, M2M100) and three
# letters (NLLB): "zh" for Chinese, for others characters, which need no further package.
TOKENIZERS = {
    **dict.fromkeys(("zh", "zho", "yue"), "zh"),
    **dict.fromkeys(("ja", "jpn", "th", "tha", "km", "khm", "my", "mya", "lo", "lao", "bo", "bod", "dzo"), "char"),
}
DEFAULT_TOKENIZER = "13a"


@dataclass(frozen=True)
class TranslationTask:
    """A corpus, the training rows of each pair, and the sentence pairs of each pair in pretraining (empty: unknown)."""

    corpus: Corpus
    shots: int
    resources: Mapping[Pair, float]

    @property
    def shares(self) -> dict[Pair, float | None]:
        """Each pair's share of the sentence pairs in pretraining; None where these are unknown."""
        total = sum(self.resources.values())
        return {pair: self.resources[pair] / total if total else None for pair in self.corpus.validation}


class Search(NamedTuple):
    """How the beam search for a translation runs; `batch_size` is in rows per process."""

    num_beams: int
    max_new_tokens: int
    batch_size: int


def tokenize_task(
    task: TranslationTask, tokenizer: PreTrainedTokenizerBase, max_length: int, max_eval_samples: int | None = None
) -> Inputs:
    """All rows that any cell may use, tokenized; one validation set for each pair."""

    def tokenized(rows: datasets.Dataset, pair: Pair) -> datasets.Dataset:
        return translation_data.tokenize(rows, pair, tokenizer, max_length)

    validation = {
        str(pair): tokenized(first_rows(rows, max_eval_samples), pair) for pair, rows in task.corpus.validation.items()
    }
    train = [next(iter(validation.values())).select([])]  # columns without rows, for a run without shots
    if task.shots:
        train = [tokenized(rows, pair) for pair, rows in task.corpus.train.items()]
    return Inputs(datasets.concatenate_datasets(train), validation, DataCollatorForSeq2Seq(tokenizer))


def score_pairs(
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: TranslationTask,
    inputs: Inputs,
    search: Search,
    bleu_tokenizer: str | None = None,
) -> Outcome:
    """Translate the validation rows; corpus BLEU of each pair as a fraction, the counts behind it, the translations.

    Args:
        bleu_tokenizer: sacrebleu's name of a tokenizer; None is tokenizer_for the target language.
    """
    scores: dict[str, float] = {}
    items: dict[str, np.ndarray] = {}
    levels: list[dict[str, Any]] = []
    for pair, share in task.shares.items():
        translations = translate(accelerator, model, tokenizer, inputs, pair, search)
        references = task.corpus.validation[pair]["tgt"][: len(translations)]
        measured = bleu(translations, references, bleu_tokenizer or tokenizer_for(pair.target))
        scores[f"eval_bleu_{pair}"] = measured.score
        items |= {f"bleu_counts_{pair}": measured.counts, f"translation_{pair}": np.array(translations)}
        levels.append(
            {
                "level": str(pair),
                "difficulty": None if share is None else 1 - share,
                "metric": "bleu",
                "score": measured.score,
                "chance": 0.0,
                "stderr": bleu_stderr(measured.counts),
                "num_examples": len(references),
                "share": share,
                "train_rows": task.shots,
                "signature": measured.signature,
                "empty_translations": sum(not text.strip() for text in translations),
            }
        )
    return Outcome(scores, items, levels)


def translate(
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    pair: Pair,
    search: Search,
) -> list[str]:
    """The translation of every validation row of a pair."""
    options = {"num_beams": search.num_beams, "max_new_tokens": search.max_new_tokens, "do_sample": False}
    first = translation_data.target_token(tokenizer, pair)
    if first is not None:
        options["forced_bos_token_id"] = first

    def generate(_: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        tokens = accelerator.unwrap_model(model).generate(**batch, **options)
        # every batch has as many columns: the start token and max_new_tokens
        return functional.pad(tokens, (0, 1 + search.max_new_tokens - tokens.shape[1]), value=tokenizer.pad_token_id)

    rows = inputs.validation[str(pair)]
    # float32 holds token ids up to 2^24 exactly
    tokens = training.predict(accelerator, model, rows, inputs.collate, search.batch_size, generate)
    return tokenizer.batch_decode(tokens.astype(np.int64), skip_special_tokens=True)


class Bleu(NamedTuple):
    """BLEU of translations against their references.

    Fields:
        score: corpus BLEU as a fraction.
        signature: sacrebleu's, which says how it was computed.
        counts: (sentences, len(COUNT_NAMES)); from sums over sentences, analysis.metrics.corpus_bleu gives their BLEU.
    """

    score: float
    signature: str
    counts: np.ndarray


def bleu(translations: Sequence[str], references: Sequence[str], tokenizer: str) -> Bleu:
    """Corpus BLEU and its counts; one reference per translation."""
    from sacrebleu.metrics import BLEU  # here: a mistake or a complete run should not wait for it

    corpus, sentence = BLEU(tokenize=tokenizer), BLEU(tokenize=tokenizer, effective_order=True)
    score = corpus.corpus_score(list(translations), [list(references)]).score / 100
    counts = np.empty((len(references), len(COUNT_NAMES)), dtype=np.int32)
    for row, translation, reference in zip(counts, translations, references, strict=True):
        one = sentence.sentence_score(translation, [reference])
        row[:] = one.sys_len, one.ref_len, *one.counts, *one.totals
    return Bleu(score, str(corpus.get_signature()), counts)


def tokenizer_for(language: str) -> str:
    """sacrebleu's tokenizer for a target language, such as "ja_XX", "zh" or "jpn_Jpan": that of TOKENIZERS, or
    DEFAULT_TOKENIZER."""
    return TOKENIZERS.get(re.split("[-_]", language)[0].lower(), DEFAULT_TOKENIZER)


def bleu_arithmetic(languages: Iterable[str]) -> int:
    """2 where the tokenizer of a target language was another before, by the first two letters of its code; else 1."""
    before = ((code, TOKENIZERS.get(code[:2].lower(), DEFAULT_TOKENIZER)) for code in languages)
    return 2 if any(tokenizer_for(code) != own for code, own in before) else 1
