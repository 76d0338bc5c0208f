"""What settings 2 to 6 and own_task share: their options, and a model measured on levels of difficulty."""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis import monotonicity
from harness.cells import Cell
from harness.content import files_content
from harness.data import Source
from harness.options import checked, number, positive
from llm_tasks import arguments
from llm_tasks.arguments import DENSE
from llm_tasks.engine import answers
from llm_tasks.engine.chat import as_messages, template_values, user_turn
from llm_tasks.engine.encoding import OVERFLOWS, EncodedLevel, TextEncoder, encode_levels
from llm_tasks.engine.greedy import AnswerEnd, answering_ways, greedy_answers
from llm_tasks.engine.log_likelihood import Work, log_likelihoods
from llm_tasks.engine.packing import Continuation, Tokens, distinct_reads
from llm_tasks.engine.processes import ALONE, Processes
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.thinking import Writer, open_tags
from llm_tasks.engine.ways import PLAIN, Ways
from llm_tasks.experiment import Evaluation, Setting
from llm_tasks.levels import LETTERS, Level

logger = logging.getLogger(__name__)

PROMPT_END = 16  # tokens that hold what a chat template puts before the model's turn
ANSWER_METRICS = ("exact_match", "contains", "f1", "em_original")
CHOICE_OPTIONS = ("answer_mode", "length_normalized")  # that settings with options to choose from obey
ANSWER_OPTIONS = ("answer_metric", "max_new_tokens", "min_new_tokens")  # that settings with generated answers obey
SHARED_OPTIONS = ("max_items", "overflow", "chat_template", "chat_template_kwargs")


class LevelSetting(NamedTuple):
    """One setting: where its items come from and what makes them harder.

    Fields:
        name: 2 … 6, or "own_task".
        task: its name in results.
        add_options: adds its own options to the parser that all settings share.
        load: its items, read and checked; ValueError where they are not usable.
        files: what load reads: the local files, or where on the hub they are.
        readers: how its levels read answers off the model: "letter", "cloze", "generate" or "answer".
        build: its levels, easy to hard, from (items, args, seed, tokenizer).
        options: names of the options that change what it computes, besides SHARED_OPTIONS.
        seeded: whether the seed changes its levels.
    """

    name: int | str
    task: str
    add_options: Callable[[argparse.ArgumentParser], None]
    load: Callable[[argparse.Namespace], Any]
    files: Callable[[argparse.Namespace], list[Path | Source]]
    readers: Callable[[argparse.Namespace], tuple[str, ...]]
    build: Callable[[Any, argparse.Namespace, int, PreTrainedTokenizerBase], list[Level]]
    options: tuple[str, ...]
    seeded: bool


class _Outcome(NamedTuple):
    """What one level came to: per item the value of each metric, and whatever else tells items apart."""

    metrics: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("evaluation").add_argument
    add("--answer_mode", choices=("letter", "generate", "cloze"),
        help="how options are read: letter = the most likely letter; generate = the letter as the one token that the "
        "model generates, as the paper's code; cloze = the most likely option text, for models too small for letters "
        "(default: what the setting says)")  # fmt: skip
    add("--length_normalized", action="store_true",
        help="cloze: score the log-likelihood per character of the option (acc_norm)")  # fmt: skip
    add("--answer_metric", choices=ANSWER_METRICS, default="exact_match",
        help="score of generated answers, all in the same normalisation: equal to an accepted answer (default), "
        "containing one as whole words, overlap of words, or the original's two-way substring match")  # fmt: skip
    add("--max_new_tokens", type=positive, default=32, help="longest generated answer in tokens (default 32)")
    add("--min_new_tokens", type=number(int, 0, 10**6), default=0,
        help="a generated answer may not end before so many tokens (default 0, as the paper); 8 for a model that often "
        "gives no answer, where a figure would show little else")  # fmt: skip
    add("--chat_template", action="store_true",
        help="put every prompt as a user's message in the tokenizer's chat template; a model tuned on conversations "
        "often leaves a bare question unanswered (default: bare, as the paper)")  # fmt: skip
    add("--chat_template_kwargs", type=checked(template_values), metavar="JSON",
        help="values that the chat template reads, a JSON object such as '{\"enable_thinking\": false}'; with "
        "--chat_template")  # fmt: skip
    add("--max_items", type=positive, metavar="N",
        help="a fixed sample of N items of each data set, the same for every seed and model (default all)")  # fmt: skip
    add("--overflow", choices=OVERFLOWS, default="drop_shots",
        help="a prompt longer than the model takes loses its last examples (default), its beginning, or is left out; "
        "never the question. Counted and logged.")  # fmt: skip


def as_setting(own: LevelSetting, ignored: tuple[str, ...] = (), unobeyed: tuple[str, ...] = ()) -> Setting:
    """The setting as experiment.run takes it.

    Args:
        ignored: options that tell no two of its runs apart.
        unobeyed: options that it does not obey.
    """

    def identify(args: argparse.Namespace) -> dict[str, Any]:
        normalized = args.length_normalized and "cloze" in own.readers(args)
        return {**files_content(own.files(args)), "length_normalized": normalized}

    def prepare(
        args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> dict[int, list[EncodedLevel]]:
        if args.min_new_tokens > args.max_new_tokens:
            raise ValueError(
                f"--min_new_tokens {args.min_new_tokens}: allowed up to --max_new_tokens {args.max_new_tokens}"
            )
        if args.chat_template and args.overflow == "truncate_left":
            raise ValueError("--chat_template: --overflow truncate_left would cut the template; allowed: "
                             "drop_shots, skip")  # fmt: skip
        if args.chat_template_kwargs and not args.chat_template:
            raise ValueError(f"--chat_template_kwargs {args.chat_template_kwargs} goes with --chat_template")
        encoder = TextEncoder(tokenizer)
        given = json.loads(args.chat_template_kwargs or "{}")
        turn = user_turn(tokenizer, encoder.leading, given) if args.chat_template else None
        if turn and turn.closing:
            logger.info("the chat template begins with a thought: options are scored after %r", turn.closing)
        items = own.load(args)
        seeds = dict.fromkeys(args.seed if own.seeded else args.seed[:1])
        found = {}
        for seed in seeds:
            levels = own.build(items, args, seed, tokenizer)
            if turn:
                levels = [as_messages(level, turn) for level in levels]
            found[seed] = encode_levels(levels, encoder, max_length, args.max_new_tokens, args.overflow)
        report_levels(own, next(iter(found.values())))
        return found

    def prove(model: PreTrainedModel, data: dict[int, list[EncodedLevel]], args: argparse.Namespace) -> None:
        for levels in data.values():
            engine_ways(model, levels, args.plain)

    def evaluate(
        model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: dict[int, list[EncodedLevel]], cell: Cell,
        args: argparse.Namespace, processes: Processes,
    ) -> Evaluation:  # fmt: skip
        levels = data[cell["seed"] if own.seeded else args.seed[0]]
        found = measure(
            model, tokenizer, levels, answer_metric=args.answer_metric, length_normalized=args.length_normalized,
            max_new_tokens=args.max_new_tokens, min_new_tokens=args.min_new_tokens,
            tokens_per_batch=arguments.tokens_scored_at_once(args), precision=arguments.precision_of(args),
            ways=engine_ways(model, levels, args.plain), processes=processes,
        )  # fmt: skip
        if cell["compression"] == DENSE and processes.is_main:
            warn_of_chance(own, found.levels)
        # A user's task goes by its own name: that of its levels' data set.
        task = levels[0].level.dataset if own.name == "own_task" else own.task
        return found._replace(facts={"task": task, **found.facts})

    return Setting(
        own.name, identify, prepare, evaluate, own.readers, prove=prove, seeded=own.seeded, ignored=ignored,
        unobeyed=unobeyed,
    )  # fmt: skip


def report_levels(own: LevelSetting, levels: Sequence[EncodedLevel]) -> None:
    """Log what each level holds, and what was left out of it or cut."""
    for encoded in levels:
        level = encoded.level
        facts = {"shortened": encoded.shortened, "skipped as too long": encoded.skipped, **level.facts}
        told = "".join(f", {name.replace('_', ' ')}: {value:.6g}" for name, value in facts.items() if value)
        logger.info("setting %s, %s (%s, %s): %d items%s", own.name, level.name, level.dataset, level.reader,
                    len(level.prompts), told)  # fmt: skip


def warn_of_chance(own: LevelSetting, levels: Sequence[dict[str, Any]]) -> None:
    """Say loudly at which levels the dense model knows nothing."""
    for level in levels:
        known = [level[name] for name in ("score", "chance", "stderr", "num_examples")]
        if level["stderr"] is None or not monotonicity.above_chance(*known):
            logger.warning(
                "SETTING %s, %s: THE DENSE MODEL IS NOT ABOVE CHANCE (%.3f, standard error %s, chance %.3f): "
                "its drops mean nothing", own.name, level["level"], level["score"],
                "unknown" if level["stderr"] is None else f"{level['stderr']:.3f}", level["chance"],
            )  # fmt: skip


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, levels: Sequence[EncodedLevel], *,
    answer_metric: str = "exact_match", length_normalized: bool = False, max_new_tokens: int = 32,
    min_new_tokens: int = 0, tokens_per_batch: int = 4096, precision: str = "no",
    ways: tuple[Ways, Ways] | None = None, processes: Processes = ALONE,
) -> Evaluation:  # fmt: skip
    """Score the model on all levels in one go, so that what levels have in common is computed once.

    Several processes divide the items among them, and each returns what all have found.

    Args:
        ways: the engine's for scores and for answers; None takes what engine_ways finds.
    Returns:
        levels: results.LEVEL_KEYS of each, its data set, reader, human score, all `metrics`, and `facts`.
        items: one row per item and level in the flat columns level (index), item, group and score; further columns of
            level 0 begin with "level0_".
        facts: tokens_computed and tokens_distinct, and the ways that the engine took.
    """
    flat, prompts = asked_of_model(levels)
    for_scores, for_answers = ways or engine_ways(model, levels)
    scores = log_likelihoods(model, flat, tokens_per_batch, precision, for_scores, processes)
    texts, work = generate(
        model, tokenizer, prompts, max_new_tokens, min_new_tokens, tokens_per_batch, precision, for_answers, processes
    )
    described, outcomes = [], []
    at = text_at = 0
    for encoded in levels:
        count = sum(map(len, encoded.continuations))
        if encoded.level.reader == "answer":
            outcome = answered(encoded.level, texts[text_at : text_at + len(encoded.contexts)])
            metric = answer_metric
        else:
            totals, tops = scores.log_likelihood[at : at + count], scores.first_token[at : at + count]
            outcome = chosen(encoded.level, totals, tops, tokenizer)
            metric = "accuracy_norm" if length_normalized and encoded.level.reader == "cloze" else "accuracy"
        at, text_at = at + count, text_at + len(encoded.contexts)
        described.append(describe_level(encoded, outcome, metric))
        outcomes.append(outcome)
    items = item_table(levels, outcomes, [level["metric"] for level in described])
    total = Work(scores.work.computed + work.computed, scores.work.distinct + work.distinct)
    taken = {**(for_scores if flat else for_answers).described(), "answers": for_answers.answers if prompts else None}
    facts = {"tokens_computed": total.computed, "tokens_distinct": total.distinct, "engine": taken}
    return Evaluation(described, items, facts)


def asked_of_model(levels: Sequence[EncodedLevel]) -> tuple[list[Continuation], list[Tokens]]:
    """The continuations to score and the prompts to answer, of all levels in order."""
    flat = [option for encoded in levels for options in encoded.continuations for option in options]
    return flat, [context for encoded in levels for context in encoded.contexts]


def engine_ways(model: PreTrainedModel, levels: Sequence[EncodedLevel], plain: bool = False) -> tuple[Ways, Ways]:
    """The fast paths for scores and for answers that are proven on the model with these levels; none if plain."""
    flat, prompts = asked_of_model(levels)
    for_scores = scoring_ways(model, distinct_reads(flat), plain)
    return for_scores, answering_ways(model, sorted(set(prompts)), plain) if prompts else PLAIN


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[tuple[int, ...]], max_new_tokens: int,
    min_new_tokens: int, tokens_per_batch: int, precision: str, ways: Ways | None = None, processes: Processes = ALONE,
) -> tuple[list[str], Work]:  # fmt: skip
    """The first line of each greedy answer; an answer ends with it, and one that never ends its thinking is empty."""
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}

    # In a chat all prompts end alike.
    inside = bool(prompts and tokenizer.chat_template and open_tags(tokenizer.decode(prompts[0][-PROMPT_END:])))
    writer = Writer(tokenizer, ends, inside)

    def is_finished(tokens: list[int]) -> bool:
        return tokens[-1] in ends or answers.has_first_line(writer.answer(tokens) or "")

    end = AnswerEnd(max_new_tokens, is_finished, min_new_tokens, tuple(ends))
    found, work = greedy_answers(model, prompts, end, tokens_per_batch, precision, ways, processes)
    texts = [writer.answer(tokens) for tokens in found]
    if unfinished := texts.count(None):
        logger.warning("%d of %d answers do not end their thinking in --max_new_tokens %d and are empty", unfinished,
                       len(texts), max_new_tokens)  # fmt: skip
    return [answers.first_line(text or "") for text in texts], work


def chosen(
    level: Level, log_likelihood: np.ndarray, first_token: np.ndarray, tokenizer: PreTrainedTokenizerBase
) -> _Outcome:
    """What was chosen among options, from the scores of all options of all prompts in order; ties go to the first."""
    counts = np.array([len(prompt.options) for prompt in level.prompts])
    ends = counts.cumsum()
    gold = np.array([prompt.gold for prompt in level.prompts])
    columns = {"option_count": counts, "option_log_likelihood": log_likelihood, "gold": gold}
    if level.reader == "generate":
        # The last character of what the first token stands for, as the paper's code reads it.
        texts = tokenizer.batch_decode([[token] for token in first_token[ends - counts].tolist()])
        letters = [text.strip()[-1:] for text in texts]
        predicted = np.array([
            LETTERS.index(letter) if letter and letter in LETTERS[:count] else -1
            for letter, count in zip(letters, counts, strict=True)
        ])  # fmt: skip
        return _Outcome({"accuracy": (predicted == gold).astype(float)}, {**columns, "predicted": predicted})
    split = np.split(log_likelihood, ends[:-1])
    predicted = np.array([part.argmax() for part in split])
    metrics = {"accuracy": (predicted == gold).astype(float)}
    columns["predicted"] = predicted
    if level.reader == "cloze":
        # Characters of the option without the blank before it, as lm-evaluation-harness counts them.
        lengths = [[max(1, len(text.removeprefix(" "))) for text in prompt.options] for prompt in level.prompts]
        normalized = np.array([(part / own).argmax() for part, own in zip(split, lengths, strict=True)])
        metrics["accuracy_norm"] = (normalized == gold).astype(float)
        columns["predicted_norm"] = normalized
    return _Outcome(metrics, columns)


def answered(level: Level, texts: Sequence[str]) -> _Outcome:
    """How the generated answers were judged, all by the aliases of the item.

    The original judges FreebaseQA by another match than TriviaQA; questions of it have that too, freebaseqa_original.
    """
    judges = {"exact_match": answers.exact_match, "contains": answers.contains, "f1": answers.f1,
              "em_original": answers.em_original}  # fmt: skip
    pairs = [(text, prompt.answers) for text, prompt in zip(texts, level.prompts, strict=True)]
    metrics = {name: np.array([float(judge(*pair)) for pair in pairs]) for name, judge in judges.items()}
    if level.dataset == "freebaseqa":
        returned = [f"{prompt.question} {text}" for text, prompt in zip(texts, level.prompts, strict=True)]
        judged = zip(returned, level.prompts, strict=True)
        metrics["freebaseqa_original"] = np.array(
            [float(answers.freebaseqa_original(text, prompt.answers)) for text, prompt in judged]
        )
    metrics["empty"] = np.array([float(not answers.normalize_answer(text)) for text in texts])
    return _Outcome(metrics, {"predicted": np.array(texts, dtype=str)})


def describe_level(encoded: EncodedLevel, outcome: _Outcome, metric: str) -> dict[str, Any]:
    level, values = encoded.level, outcome.metrics[metric]
    chance = 0.0
    if level.reader in ("letter", "cloze"):
        chance = float(np.mean([1 / len(prompt.options) for prompt in level.prompts]))
    stderr = monotonicity.clustered_error(values, [prompt.group for prompt in level.prompts])
    return {
        "level": level.name, "difficulty": level.difficulty, "metric": metric, "score": float(values.mean()),
        "chance": chance, "stderr": stderr, "num_examples": len(values), "dataset": level.dataset,
        "reader": level.reader, "human": level.human,
        "metrics": {name: float(own.mean()) for name, own in outcome.metrics.items()},
        "facts": {**level.facts, "shortened": encoded.shortened, "skipped_too_long": encoded.skipped},
    }  # fmt: skip


def item_table(
    levels: Sequence[EncodedLevel], outcomes: Sequence[_Outcome], metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """The columns of items.npz."""
    prompts = [(index, prompt) for index, encoded in enumerate(levels) for prompt in encoded.level.prompts]
    table = {
        "level": np.array([index for index, _ in prompts], dtype=np.int32),
        "item": np.array([prompt.item for _, prompt in prompts], dtype=str),
        "group": np.array([prompt.group for _, prompt in prompts], dtype=str),
        "score": np.concatenate([own.metrics[metric] for own, metric in zip(outcomes, metrics, strict=True)]),
    }
    for index, outcome in enumerate(outcomes):
        table |= {f"level{index}_{name}": column for name, column in {**outcome.metrics, **outcome.columns}.items()}
    return table
