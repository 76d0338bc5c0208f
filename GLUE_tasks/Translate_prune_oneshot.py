"""Prune a multilingual translation model once, fine-tune it on few examples or not at all, score each language pair.

Model and data from the hub (2.4 GB; a GPU is advised):

    python GLUE_tasks/Translate_prune_oneshot.py --model_name_or_path facebook/mbart-large-50-many-to-many-mmt \\
        --noembed --dataset_name Helsinki-NLP/opus-100 --dataset_config de-en en-fr en-gu en-kk --eval_split test \\
        --pairs de_DE-en_XX fr_XX-en_XX gu_IN-en_XX kk_KZ-en_XX --shots 0 100 --max_eval_samples 500 \\
        --sparse_method dense_transfer sparse_transfer --sparsity 0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 \\
        --nm_ratio 7:8 6:8 5:8 4:8 --output_dir "runs/translation/{shots}/{transfer}/{strength}/{seed}"

or any csv, json or parquet file with the columns src, tgt, src_lang and tgt_lang (--train_file, --validation_file). The
score is sacrebleu's corpus BLEU of each pair; one model is fine-tuned on all pairs. The loss is the model's, a mean
over the tokens of a batch, without label smoothing.
"""

import argparse
import functools
import logging
import sys

from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedTokenizerBase

from GLUE_tasks import domain_data, glue_data, options, runner, translation, translation_data
from GLUE_tasks.runner import Inputs, LoadedTask, Outcome, TaskKind
from GLUE_tasks.translation import Search, TranslationTask
from GLUE_tasks.translation_data import Corpus
from harness import models
from harness.cells import Cell
from harness.data import Source
from harness.options import checked, filled_path, number, positive

logger = logging.getLogger(__name__)

POOL = 10_000  # first training rows of a pair, from which --shots are drawn
BLEU_TOKENIZERS = ("auto", "13a", "intl", "zh", "char", "none")


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = options.make_parser(__doc__)
    add = parser.add_argument_group("translation").add_argument
    add("--dataset_name", help="hub data set with a 'translation' column, such as Helsinki-NLP/opus-100")
    add("--dataset_config", nargs="+", default=[], metavar="CONFIG",
        help="configs of --dataset_name; a pair is read from each that has both languages")  # fmt: skip
    add("--eval_split", choices=("validation", "test"), default="validation",
        help="what of --dataset_name is evaluated (default validation)")  # fmt: skip
    add("--train_file", type=filled_path, nargs="+", metavar="FILE",
        help="csv, json or parquet with src, tgt, src_lang, tgt_lang, or with 'translation' as on the hub")  # fmt: skip
    add("--validation_file", type=filled_path, nargs="+", metavar="FILE", help="the same columns, for evaluation")
    add("--pairs", nargs="+", type=checked(translation_data.parse_pair), default=[], metavar="SOURCE-TARGET",
        help="directions to translate, by the codes of the model's tokenizer: en_XX-ro_RO (default: all that the "
        "src_lang and tgt_lang columns have)")  # fmt: skip
    add("--resources", nargs="+", default=[], metavar="PAIR=SENTENCES",
        help="number of sentence pairs in pretraining, for every pair of languages; a pair's difficulty is 1 - its "
        "share of them")  # fmt: skip
    add("--shots", nargs="+", type=number(int, 0, 10**9), default=[0], metavar="ROWS",
        help="training rows of EACH pair, drawn with --seed from its first --max_train_samples (default 10000); 0 is "
        "no fine-tuning (default 0)")  # fmt: skip
    add("--num_beams", type=positive, default=5, help="beams of the search for a translation (default %(default)s)")
    add("--max_new_tokens", type=positive, default=128, help="most tokens of a translation (default %(default)s)")
    add("--bleu_tokenize", choices=BLEU_TOKENIZERS, default="auto",
        help="sacrebleu's tokenizer; auto: 13a, for languages without spaces zh or char (default auto)")  # fmt: skip
    parser.set_defaults(max_train_samples=POOL, per_device_train_batch_size=16, per_device_eval_batch_size=16)
    return parser


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """parser.error where the options of data and training do not go together."""
    if bool(args.dataset_name) == bool(args.validation_file):
        parser.error("give either --dataset_name or --validation_file")
    if args.dataset_name and (args.train_file or not args.pairs):
        parser.error("--dataset_name needs --pairs and takes no --train_file")
    if args.validation_file and args.dataset_config:
        parser.error("--dataset_config goes with --dataset_name")
    if args.validation_file and args.eval_split != parser.get_default("eval_split"):
        parser.error(f"--eval_split {args.eval_split} goes with --dataset_name; --validation_file is evaluated whole")
    if any(args.shots) and not (args.dataset_name or args.train_file):
        parser.error(f"--shots {max(args.shots)} needs --train_file")
    if args.validation_split_percentage != [100.0] or args.subset == "prefix":
        parser.error(
            "translation draws --shots rows of each pair; --validation_split_percentage and --subset are not for it"
        )
    if 0 in args.shots:
        _check_no_training(parser, args)
    if any(args.shots) and args.num_train_epochs == 0 and not args.max_train_steps:
        parser.error("--num_train_epochs 0: give --shots 0, or the runs would be called few-shot")
    try:
        resources = translation_data.parse_resources(args.resources)
    except ValueError as error:
        parser.error(f"--resources: {error}")
    if resources and args.pairs and (lacking := [pair for pair in args.pairs if pair not in resources]):
        parser.error(f"--resources lacks {lacking[0]}; name every pair or none")


def _check_no_training(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.max_train_steps:
        parser.error("--max_train_steps does not go with --shots 0, which trains nothing")
    for transfer in options.transfers(args):
        if transfer in ("dense_transfer_freezing", "sparse_to_dense"):
            same = "dense_transfer" if transfer == "dense_transfer_freezing" else "sparse_transfer"
            parser.error(f"--shots 0 trains nothing, so that {transfer} is {same}; give that")


def check_config(config: PretrainedConfig) -> None:
    """Refuse a model that does not turn one text into another.

    Raises:
        ValueError: the config is not that of an encoder-decoder.
    """
    if not config.is_encoder_decoder:
        raise ValueError(
            f"{config.model_type} cannot translate; an encoder-decoder that generates text is needed, such as "
            "facebook/mbart-large-50-many-to-many-mmt"
        )


def named_tasks(args: argparse.Namespace) -> list[Cell]:
    """The corpus with each number of shots."""
    name = (
        args.dataset_name.rpartition("/")[2] if args.dataset_name else glue_data.name_of_files(args.validation_file[0])
    )
    return [{"task_name": name, "shots": shots} for shots in dict.fromkeys(args.shots)]


def load_corpus(args: argparse.Namespace) -> tuple[Corpus, PreTrainedTokenizerBase]:
    """The corpus, which all cells share, and the model's tokenizer.

    Raises:
        ValueError: the model cannot translate, or not from or into one of the languages.
    """
    name, revision, trusted = args.model_name_or_path, args.revision, args.trust_remote_code
    models.meta_model(name, AutoModelForSeq2SeqLM, trusted, check_config, revision)
    if args.dataset_name:
        configs, split = args.dataset_config, args.eval_split
        corpus = translation_data.load_hub(args.dataset_name, configs, split, args.pairs, args.max_train_samples)
    else:
        files = args.train_file or (), args.validation_file
        corpus = translation_data.load_files(*files, args.pairs, args.max_train_samples)
    tokenizer = models.load_tokenizer(name, trusted, revision)
    translation_data.check_languages(tokenizer, corpus.validation)
    return corpus, tokenizer


def task_kind(args: argparse.Namespace) -> TaskKind:
    """Translation of a corpus, without training or after few-shot fine-tuning on all of its pairs of languages."""
    shared = functools.cache(functools.partial(load_corpus, args))
    search = Search(args.num_beams, args.max_new_tokens, args.per_device_eval_batch_size)
    cut = None if args.bleu_tokenize == "auto" else args.bleu_tokenize

    def load(named: Cell) -> LoadedTask:
        corpus, tokenizer = shared()
        shots, resources = named["shots"], translation_data.parse_resources(args.resources)
        translation_data.check_shots(corpus, shots)
        if resources and (lacking := [pair for pair in corpus.validation if pair not in resources]):
            raise ValueError(f"--resources lacks {lacking[0]}; name every pair or none")
        if len(corpus.validation) == 1:
            logger.warning("%s: one pair of languages, so that there is nothing to compare it with", corpus.name)
        task = TranslationTask(corpus, shots, {pair: resources[pair] for pair in corpus.validation if resources})

        def choose_rows(num_rows: int, cell: Cell) -> list[int]:
            names = [str(pair) for pair, rows in corpus.train.items() for _ in range(len(rows))]
            return domain_data.mixture_rows(names, {str(pair): shots for pair in corpus.train}, cell["seed"])

        def score(accelerator: Accelerator, model: nn.Module, inputs: Inputs, cell: Cell) -> Outcome:
            return translation.score_pairs(accelerator, model, tokenizer, task, inputs, search, cut)

        return LoadedTask(
            name=corpus.name,
            data=corpus.files or hub_sets(args.dataset_name, args.dataset_config, args.eval_split),
            tokenize=lambda tokenizer: translation.tokenize_task(
                task, tokenizer, args.max_length, args.max_eval_samples
            ),
            choose_rows=choose_rows,
            score=score,
            decisions={"bleu_arithmetic": 1 if cut else translation.bleu_arithmetic(own.target for own in task.shares)},
            facts={"shots": shots},
        )

    return TaskKind("translation", AutoModelForSeq2SeqLM, named_tasks(args), load)


def hub_sets(name: str, configs: list[str], split: str) -> list[Source]:
    """The hub data sets of the corpus, one for each config."""
    return [Source(name, split, name, config, split, ()) for config in configs or [None]]


def main(argv: list[str] | None = None) -> int:
    """Compute every cell that is not complete yet; returns the exit code."""
    parser = make_parser()
    args = options.parse(parser, argv)
    check_options(parser, args)
    return runner.main(parser, args, task_kind(args))


if __name__ == "__main__":
    sys.exit(main())
