"""Translation: tokenised rows of a task, and the BLEU of what a model makes of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from analysis.metrics import bleu_stderr
from GLUE_tasks import classification, finetune, translation_data
from GLUE_tasks.problem import Inputs, Outcome
from GLUE_tasks.translation_data import Corpus, Pair


@dataclass(frozen=True)
class TranslationTask:
    """A corpus, how many training rows of every pair a run sees, and the sentence pairs that pretraining saw."""

    corpus: Corpus
    shots: int
    resources: Mapping[Pair, float]

    @property
    def name(self) -> str:
        return self.corpus.name

    @property
    def files(self) -> tuple[Path, ...]:
        return self.corpus.files

    @property
    def shares(self) -> dict[Pair, float | None]:
        """Each pair's share of what pretraining saw of all pairs; None where that is not known."""
        total = sum(self.resources.values())
        return {pair: self.resources[pair] / total if total else None for pair in self.corpus.validation}


class Search(NamedTuple):
    """How a translation is looked for; `batch_size` rows per process at a time."""

    num_beams: int
    max_new_tokens: int
    batch_size: int


def tokenize_task(
    task: TranslationTask, tokenizer: PreTrainedTokenizerBase, max_length: int, max_eval_samples: int | None = None
) -> Inputs:
    """All rows that any cell of the task may see, tokenised; of validation one data set for every pair."""

    def tokenized(rows: datasets.Dataset, pair: Pair) -> datasets.Dataset:
        return translation_data.tokenize(rows, pair, tokenizer, max_length)

    validation = {
        str(pair): tokenized(classification.first_rows(rows, max_eval_samples), pair)
        for pair, rows in task.corpus.validation.items()
    }
    train = [next(iter(validation.values())).select([])]  # the columns, which is all that a run without shots needs
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
    """BLEU of every pair of languages, as a fraction, with the counts that it is made of and the translations.

    Args:
        bleu_tokenizer: sacrebleu's name of one; None takes the one that suits the target language.
    """
    from GLUE_tasks import translation_metric  # here: a mistake or a complete run should not wait for sacrebleu

    scores: dict[str, float] = {}
    items: dict[str, np.ndarray] = {}
    levels: list[dict[str, Any]] = []
    for pair, share in task.shares.items():
        translations = translate(accelerator, model, tokenizer, inputs, pair, search)
        references = task.corpus.validation[pair]["tgt"][: len(translations)]
        cut = bleu_tokenizer or translation_metric.tokenizer_for(pair.target)
        found = translation_metric.bleu(translations, references, cut)
        scores[f"eval_bleu_{pair}"] = found.score
        items |= {f"bleu_counts_{pair}": found.counts, f"translation_{pair}": np.array(translations)}
        levels.append(
            {
                "level": str(pair),
                "difficulty": None if share is None else 1 - share,
                "metric": "bleu",
                "score": found.score,
                "chance": 0.0,
                "stderr": bleu_stderr(found.counts),
                "num_examples": len(references),
                "share": share,
                "train_rows": task.shots,
                "signature": found.signature,
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
        # the start token, then as many as were asked for, in every batch
        return functional.pad(tokens, (0, 1 + search.max_new_tokens - tokens.shape[1]), value=tokenizer.pad_token_id)

    rows = inputs.validation[str(pair)]
    # float32 holds the numbers of tokens exactly, up to 2^24
    tokens = finetune.predict(accelerator, model, rows, inputs.collate, search.batch_size, generate)
    return tokenizer.batch_decode(tokens.astype(np.int64), skip_special_tokens=True)
