"""A model measured on levels of difficulty: their prompts as tokens, the outcome of every item, every level's score."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analysis import estimators
from harness.choices import guessing_score
from llm_tasks.engine import answers
from llm_tasks.engine.chat import as_messages, user_turn
from llm_tasks.engine.encoding import EncodedLevel, Stop, TextEncoder, encode_levels
from llm_tasks.engine.greedy import AnswerEnd, answering_ways, greedy_answers
from llm_tasks.engine.log_likelihood import Scores, Work, log_likelihoods
from llm_tasks.engine.packing import Continuation, Tokens, distinct_reads
from llm_tasks.engine.processes import ALONE, Processes
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.stop_texts import answers_until, end_tokens, penalties
from llm_tasks.engine.thinking import AnswerDecoder, open_tags
from llm_tasks.engine.ways import PLAIN, Ways
from llm_tasks.levels import BY_DENSE, LETTERS, Level, Outcome, Responses
from pruning.block_calls import blocks_held
from pruning.blocks import BlockStorage
from pruning.layers import decoder_blocks
from pruning.replay import replays

logger = logging.getLogger(__name__)

PROMPT_END = 16  # tokens that hold what a chat template puts before the model's turn
ANSWER_METRICS = ("exact_match", "contains", "f1", "em_original")


@dataclass(frozen=True)
class Reading:
    """How prompts are put to a model and its answers read.

    Attributes:
        answer_metric: one of ANSWER_METRICS, the score of generated answers.
        length_normalized: where option texts are scored, by their log-likelihood per character.
        max_new_tokens: longest generated answer.
        min_new_tokens: a generated answer does not end before so many.
        overflow: what becomes of a prompt longer than the model takes, one of encoding.OVERFLOWS.
        template_values: handed to the chat template in which every prompt stands; None for bare prompts.
        plain: take none of the engine's fast paths.
        tokens_per_batch: tokens computed at once.
        precision: "bf16" multiplies a float32 model's matrices in bf16.
    """

    answer_metric: str = "exact_match"
    length_normalized: bool = False
    max_new_tokens: int = 32
    min_new_tokens: int = 0
    overflow: str = "drop_shots"
    template_values: Mapping[str, Any] | None = None
    plain: bool = False
    tokens_per_batch: int = 4096
    precision: str = "no"


class Evaluation(NamedTuple):
    """What was measured on one model: run_folder.LEVEL_KEYS per level, outcome per item, and other facts."""

    levels: list[dict[str, Any]]
    items: dict[str, np.ndarray]
    facts: dict[str, Any]


def encode(
    levels: Mapping[int, Sequence[Level]], tokenizer: PreTrainedTokenizerBase, max_length: int, reading: Reading
) -> dict[int, list[EncodedLevel]]:
    """The levels of every seed as tokens, in the chat template if there shall be one.

    Args:
        max_length: tokens that the model takes.
    Raises:
        ValueError: nothing of a level is left, or the chat template cannot be used.
    """
    if any(level.encode is not None for own in levels.values() for level in own):  # then all of a setting are
        return {seed: [level.encode(level, tokenizer, max_length) for level in own] for seed, own in levels.items()}
    encoder = TextEncoder(tokenizer)
    found = {seed: list(own) for seed, own in levels.items()}
    if reading.template_values is not None:
        turn = user_turn(tokenizer, encoder.leading, reading.template_values)
        if turn.closing:
            logger.info("the chat template begins with a thought: options are scored after %r", turn.closing)
        found = {seed: [as_messages(level, turn) for level in own] for seed, own in found.items()}
    return {
        seed: encode_levels(own, encoder, max_length, reading.max_new_tokens, reading.overflow)
        for seed, own in found.items()
    }


def report_levels(setting: int | str, levels: Sequence[EncodedLevel]) -> None:
    """Log what each level holds, and what was left out of it or cut; warn where its difficulty will not be known."""
    for encoded in levels:
        level = encoded.level
        facts = {"shortened": encoded.shortened, "skipped as too long": encoded.skipped, **level.facts}
        told = "".join(f", {name.replace('_', ' ')}: {value:.6g}" for name, value in facts.items() if value)
        logger.info("setting %s, %s (%s, %s): %d items%s", setting, level.name, level.dataset, level.reader,
                    len(level.prompts), told)  # fmt: skip
        known = level.human is not None or level.facts.get("reference_only") or level.facts.get(BY_DENSE)
        if level.difficulty is None and not known:
            logger.warning("setting %s, no human score: %s is shown without difficulty", setting, level.name)


def warn_of_chance(setting: int | str, levels: Sequence[dict[str, Any]]) -> None:
    """Say loudly at which levels the dense model knows nothing."""
    for level in levels:
        known = [level[name] for name in ("score", "chance", "stderr", "num_examples")]
        if level["stderr"] is None or not estimators.above_chance(*known):
            logger.warning(
                "SETTING %s, %s: THE DENSE MODEL IS NOT ABOVE CHANCE (%.3f, standard error %s, chance %.3f): "
                "its drops mean nothing", setting, level["level"], level["score"],
                "unknown" if level["stderr"] is None else f"{level['stderr']:.3f}", level["chance"],
            )  # fmt: skip


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, levels: Sequence[EncodedLevel],
    reading: Reading, processes: Processes = ALONE, ways: tuple[Ways, Ways] | None = None,
    storage: BlockStorage | None = None,
) -> Evaluation:  # fmt: skip
    """Score the model on all levels in one go, so that what levels have in common is computed once.

    Several processes divide the items among them, and each returns what all have found.

    Args:
        ways: the engine's for scores and for answers; None takes what engine_ways finds.
        storage: where the blocks are, of a model whose blocks are not on its device. Scores are computed with each
            block brought there once; for answers every batch brings all blocks at every token.
    Returns:
        levels: run_folder.LEVEL_KEYS of each, its data set, reader, human score, all `metrics`, and `facts`.
        items: one row per item and level in the flat columns level (index), item, group and score; further columns of
            level 0 begin with "level0_".
        facts: tokens_computed and tokens_distinct, and the ways that the engine took.
    """
    ways = ways or engine_ways(model, levels, reading.plain, storage)
    responses, facts = respond(model, tokenizer, levels, reading, processes, ways, storage)
    judged = [judge(encoded, own, reading, tokenizer) for encoded, own in zip(levels, responses, strict=True)]
    outcomes, metrics = zip(*judged, strict=True)
    described = [describe_level(*of_level) for of_level in zip(levels, outcomes, metrics, strict=True)]
    return Evaluation(described, item_table(levels, outcomes, metrics), facts)


def respond(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, levels: Sequence[EncodedLevel], reading: Reading,
    processes: Processes, ways: tuple[Ways, Ways], storage: BlockStorage | None,
) -> tuple[list[tuple[Scores, list[str]]], dict[str, Any]]:  # fmt: skip
    """What the model says at every level, and the facts of `measure`.

    Returns:
        Of each level the scores of its continuations and the answers to its contexts, both in their order.
    """
    (for_scores, for_answers), (flat, prompts) = ways, asked_of_model(levels)
    scores, texts, work = Scores(np.zeros(0), np.zeros(0), Work(0, 0)), [], Work(0, 0)
    if flat:
        greedy = any(encoded.judge is not None for encoded in levels)
        scores = score(model, flat, reading, for_scores, processes, storage, greedy)
        if any(encoded.level.reader == "generate" for encoded in levels) and penalties(model.generation_config):
            with held(model, storage):
                scores = penalized(model, flat, scores, reading, for_scores, processes)
    if prompts:
        stops = [stop for encoded in levels for stop in encoded.stops]
        with held(model, storage):
            texts, work = generate(model, tokenizer, prompts, reading, for_answers, processes, stops)
    taken = {**(for_scores if flat else for_answers).described(), "answers": for_answers.answers if prompts else None}
    facts = {
        "tokens_computed": scores.work.computed + work.computed,
        "tokens_distinct": scores.work.distinct + work.distinct,
        "engine": taken,
    }
    responses, at, text_at = [], 0, 0
    for encoded in levels:
        end, text_end = at + sum(map(len, encoded.continuations)), text_at + len(encoded.contexts)
        own = scores._replace(
            log_likelihood=scores.log_likelihood[at:end], first_token=scores.first_token[at:end],
            greedy=None if scores.greedy is None else scores.greedy[at:end],
        )  # fmt: skip
        responses.append((own, texts[text_at:text_end]))
        at, text_at = end, text_end
    return responses, facts


def judge(
    encoded: EncodedLevel, responses: tuple[Scores, list[str]], reading: Reading, tokenizer: PreTrainedTokenizerBase
) -> tuple[Outcome, str]:
    """What one level came to, from the model's `respond` to it, and which metric is its score."""
    scores, texts = responses
    if encoded.judge is not None:
        greedy = np.zeros(0, dtype=bool) if scores.greedy is None else scores.greedy
        outcome = encoded.judge(Responses(scores.log_likelihood, greedy, texts))
        return outcome, outcome.metric
    if encoded.level.reader == "answer":
        return answered(encoded.level, texts), reading.answer_metric
    outcome = chosen(encoded.level, scores.log_likelihood, scores.first_token, tokenizer)
    normalized = reading.length_normalized and encoded.level.reader == "cloze"
    return outcome, "accuracy_norm" if normalized else "accuracy"


def asked_of_model(levels: Sequence[EncodedLevel]) -> tuple[list[Continuation], list[Tokens]]:
    """The continuations to score and the prompts to answer, of all levels in order."""
    flat = [option for encoded in levels for options in encoded.continuations for option in options]
    return flat, [context for encoded in levels for context in encoded.contexts]


def score(
    model: PreTrainedModel, continuations: Sequence[Continuation], reading: Reading, ways: Ways,
    processes: Processes = ALONE, storage: BlockStorage | None = None, greedy: bool = False,
) -> Scores:  # fmt: skip
    """Log-likelihoods of continuations; block by block if blocks are not on the device and can be run one by one."""
    blockwise = storage is not None and replays(model, storage, reading.precision)
    with contextlib.nullcontext() if blockwise else held(model, storage):
        return log_likelihoods(
            model, continuations, reading.tokens_per_batch, reading.precision, ways, processes,
            storage if blockwise else None, greedy,
        )  # fmt: skip


def penalized(
    model: PreTrainedModel, continuations: Sequence[Continuation], scores: Scores, reading: Reading, ways: Ways,
    processes: Processes,
) -> Scores:  # fmt: skip
    """The scores with the first tokens that the model writes under the penalties of its generation config."""
    end = AnswerEnd(1, lambda tokens: True, processors=penalties(model.generation_config))
    contexts = [continuation.tokens[: continuation.start] for continuation in continuations]
    written, work = greedy_answers(model, contexts, end, reading.tokens_per_batch, reading.precision, ways, processes)
    total = Work(scores.work.computed + work.computed, scores.work.distinct + work.distinct)
    return scores._replace(first_token=np.array(written)[:, 0], work=total)


def engine_ways(
    model: PreTrainedModel, levels: Sequence[EncodedLevel], plain: bool = False, storage: BlockStorage | None = None
) -> tuple[Ways, Ways]:
    """The fast paths for scores and for answers that are proven on the model with these levels; none if plain."""
    flat, prompts = asked_of_model(levels)
    with held(model, storage):
        for_scores = scoring_ways(model, distinct_reads(flat), plain)
        return for_scores, answering_ways(model, sorted(set(prompts)), plain) if prompts else PLAIN


def held(model: PreTrainedModel, storage: BlockStorage | None) -> contextlib.AbstractContextManager:
    """Inside, the model can be run as a whole, wherever its blocks are."""
    return contextlib.nullcontext() if storage is None else blocks_held(decoder_blocks(model)[1], storage)


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Tokens], reading: Reading,
    ways: Ways | None = None, processes: Processes = ALONE, stops: Sequence[Stop] = (),
) -> tuple[list[str], Work]:  # fmt: skip
    """The first line of each greedy answer; an answer ends with it, and one that never ends its thinking is empty.

    With `stops`, one for each prompt, an answer is all the text before its stop. Tokens are chosen under the penalties
    of the model's generation config, as transformers' generate chooses them.
    """
    if stops:
        return answers_until(
            model, tokenizer, prompts, stops, reading.tokens_per_batch, reading.precision, ways, processes
        )
    ends = end_tokens(model, tokenizer)

    # In a chat all prompts end alike.
    inside = bool(prompts and tokenizer.chat_template and open_tags(tokenizer.decode(prompts[0][-PROMPT_END:])))
    decoder = AnswerDecoder(tokenizer, ends, inside)

    def is_finished(tokens: list[int]) -> bool:
        return tokens[-1] in ends or answers.has_first_line(decoder.answer(tokens) or "")

    processors = penalties(model.generation_config)
    end = AnswerEnd(reading.max_new_tokens, is_finished, reading.min_new_tokens, tuple(ends), processors)
    found, work = greedy_answers(model, prompts, end, reading.tokens_per_batch, reading.precision, ways, processes)
    texts = [decoder.answer(tokens) for tokens in found]
    if unfinished := texts.count(None):
        logger.warning("%d of %d answers do not end their thinking in --max_new_tokens %d and are empty", unfinished,
                       len(texts), reading.max_new_tokens)  # fmt: skip
    return [answers.first_line(text or "") for text in texts], work


def chosen(
    level: Level, log_likelihood: np.ndarray, first_token: np.ndarray, tokenizer: PreTrainedTokenizerBase
) -> Outcome:
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
        return Outcome({"accuracy": (predicted == gold).astype(float)}, {**columns, "predicted": predicted})
    split = np.split(log_likelihood, ends[:-1])
    predicted = np.array([part.argmax() for part in split])
    metrics = {"accuracy": (predicted == gold).astype(float)}
    columns["predicted"] = predicted
    if level.reader == "cloze":
        # Characters of the option without the space before it, as lm-evaluation-harness counts them.
        lengths = [[max(1, len(text.removeprefix(" "))) for text in prompt.options] for prompt in level.prompts]
        normalized = np.array([(part / own).argmax() for part, own in zip(split, lengths, strict=True)])
        metrics["accuracy_norm"] = (normalized == gold).astype(float)
        columns["predicted_norm"] = normalized
        columns["option_length"] = np.array([length for own in lengths for length in own])
    return Outcome(metrics, columns)


def answered(level: Level, texts: Sequence[str]) -> Outcome:
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
    return Outcome(metrics, {"predicted": np.array(texts, dtype=str)})


def describe_level(encoded: EncodedLevel, outcome: Outcome, metric: str) -> dict[str, Any]:
    level, values = encoded.level, outcome.metrics[metric]
    chance = 0.0
    if outcome.chance is not None:
        chance = outcome.chance
    elif level.reader in ("letter", "cloze"):
        chance = guessing_score([prompt.choices or prompt.options for prompt in level.prompts],
                                [[prompt.gold] for prompt in level.prompts])  # fmt: skip
    stderr = estimators.clustered_error(values, [prompt.group for prompt in level.prompts])
    return {
        "level": level.name, "difficulty": level.difficulty, "metric": metric, "score": float(values.mean()),
        "chance": chance, "stderr": stderr, "num_examples": len(values), "dataset": level.dataset,
        "reader": level.reader, "human": level.human,
        "metrics": {**{name: float(own.mean()) for name, own in outcome.metrics.items()}, **outcome.totals},
        "facts": {**level.facts, "shortened": encoded.shortened, "skipped_too_long": encoded.skipped},
    }  # fmt: skip


def item_table(
    levels: Sequence[EncodedLevel], outcomes: Sequence[Outcome], metrics: Sequence[str]
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
