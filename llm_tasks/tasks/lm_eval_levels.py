"""Levels of lm-evaluation-harness's tasks: what each item asks of the model, and how lm-eval judges the answers."""

import contextlib
import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from harness.choices import LETTERS, guessing_score
from llm_tasks.engine.chat import check_values, in_template
from llm_tasks.engine.encoding import EncodedLevel
from llm_tasks.engine.packing import Continuation, Tokens
from llm_tasks.engine.request_tokens import RequestEncoder
from llm_tasks.levels import Level, Outcome, Prompt, Responses, distinct, item_id, repeated_items, sample
from llm_tasks.tasks.lm_eval_tasks import (
    GUESSED,
    PER_BYTE,
    UNUSABLE,
    WHOLE_TEXT,
    TaskLevel,
    golds,
    instances_kept,
    made_requests,
    metric_names,
    scores_itself,
    stop_of,
)

SHARED_TEXT = 200  # characters: a longer text that items have in common is a document, which makes them a group


class Item(NamedTuple):
    """One document of a task.

    Fields:
        item: its identity.
        content: the identity that it has in common with its repetitions.
        task: the task's index in its level.
        doc_id: its index in the task's data.
        doc: its fields.
    """

    item: str
    content: str
    task: int
    doc_id: int
    doc: Mapping[str, Any]


def items_of(level: TaskLevel, count: int | None) -> list[Item]:
    """The items of a level, or a sample of so many, the same for every model."""
    found = []
    for index, task in enumerate(level.tasks):
        docs = {request.doc_id: request.doc for request in task.instances}
        found += [(item_id(task.task_name, _text_of(doc)), index, doc_id, doc) for doc_id, doc in docs.items()]
    names = distinct(item for item, *_ in found)
    items = [Item(name, *one) for name, one in zip(names, found, strict=True)]
    return sample(items, count, key=lambda item: item.item)


def _text_of(doc: Any) -> str:
    return json.dumps(doc, sort_keys=True, default=str)


def make_level(
    level: TaskLevel, items: Sequence[Item], metric: str, dataset: str, chat: Mapping[str, Any] | None
) -> Level:
    """A level of these items.

    Args:
        metric: one of metric_names(level).
        dataset: its name in results.
        chat: values that the chat template reads; None for bare prompts.
    Returns:
        Its difficulty is left open. Items of a group's tasks are grouped by task, others by the document that they
        share or repeat.
    """
    requests = _requests([task.instances for task in level.tasks], items)
    groups = _groups(level, items)
    prompts = [
        _shown(level.tasks[item.task], item, own, group)
        for item, own, group in zip(items, requests, groups, strict=True)
    ]
    shots = {task.config.num_fewshot for task in level.tasks}
    facts = ({"num_fewshot": shots.pop()} if len(shots) == 1 else {}) | repeated_items(item.content for item in items)
    encode = functools.partial(_encode, level, items, metric, chat)
    return Level(level.name, None, dataset, "lm_eval", prompts, facts=facts, encode=encode)


def _requests(of_tasks: Sequence[Sequence[Any]], items: Sequence[Item]) -> list[list[Any]]:
    """The requests of each item, in their order, from those of each task."""
    by_doc: dict[tuple[int, int], list[Any]] = {}
    for index, own in enumerate(of_tasks):
        for request in own:
            by_doc.setdefault((index, request.doc_id), []).append(request)
    return [sorted(by_doc[item.task, item.doc_id], key=lambda request: request.idx) for item in items]


def _groups(level: TaskLevel, items: Sequence[Item]) -> list[str]:
    if len(level.tasks) > 1:
        return [level.tasks[item.task].task_name for item in items]
    texts = [max((own for own in item.doc.values() if isinstance(own, str)), key=len, default="") for item in items]
    times = Counter(texts)
    return [
        item_id(text) if len(text) > SHARED_TEXT and times[text] > 1 else item.content
        for item, text in zip(items, texts, strict=True)
    ]


def _shown(task: Any, item: Item, requests: Sequence[Any], group: str) -> Prompt:
    """The item as it is shown to readers; what the model is asked are the requests."""
    first = requests[0]
    context = first.args[0]
    if task.OUTPUT_TYPE == "multiple_choice":
        options = tuple(map(str, task.doc_to_choice(item.doc)))
        return Prompt(item.item, group, context, options=options, gold=golds(task, item.doc)[0])
    target = task.doc_to_target(item.doc) if first.request_type != "loglikelihood_rolling" else ()
    answers = tuple(map(str, target)) if isinstance(target, list | tuple) else (str(target),)
    return Prompt(item.item, group, context, answers=answers)


def _encode(
    level: TaskLevel, items: Sequence[Item], metric: str, chat: Mapping[str, Any] | None, shown: Level,
    tokenizer: PreTrainedTokenizerBase, max_length: int,
) -> EncodedLevel:  # fmt: skip
    """The level's requests as tokens; what is too long loses its beginning, as in lm-eval.

    Raises:
        ValueError: a request that cannot be tokenised, the chat template cannot be used, or the metric is seen to be no
            score (_scores).
    """
    if chat is not None:
        check_values(tokenizer, chat)
    template = None if chat is None else functools.partial(_in_template, tokenizer, chat)
    requests = _requests([made_requests(task, template) for task in level.tasks], items)
    encoder = RequestEncoder(tokenizer, max_length)
    end_text = None if tokenizer.eos_token_id is None else tokenizer.decode(tokenizer.eos_token_id)
    flat = [request for own in requests for request in own]
    pairs = [request.args for request in flat if request.request_type == "loglikelihood"]
    texts = [request.args[0] for request in flat if request.request_type == "loglikelihood_rolling"]
    asked = [request.args for request in flat if request.request_type == "generate_until"]
    stops = [stop_of(arguments, end_text) for _, arguments in asked]
    try:
        scored, windows = iter(encoder.continuations(pairs)), iter(encoder.windows(texts))
        contexts: list[Tokens] = encoder.prompts([text for text, _ in asked], [stop.max_new_tokens for stop in stops])
    except ValueError as error:
        raise ValueError(f"--lm_eval_tasks {level.name}: {error}") from error
    parts: list[list[list[Continuation]]] = [[_parts(request, scored, windows) for request in own] for own in requests]
    continuations = [[one for of_request in own for one in of_request] for own in parts]
    counts = [[len(of_request) for of_request in own] for own in parts]
    _try_answers(level, items[0], requests[0], counts[0], metric)
    judge = functools.partial(_judge, level, items, requests, counts, metric, _chance(level, items, requests, metric))
    return EncodedLevel(shown, continuations, contexts, encoder.cut, 0, stops, judge)


def _in_template(
    tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any], history: list[dict[str, str]],
    add_generation_prompt: bool = True,
) -> str:  # fmt: skip
    """A conversation in the chat template, without its system message where the template takes none.

    Source: lm-evaluation-harness, models/huggingface.py, apply_chat_template.
    """

    def applied(messages: list[dict[str, str]]) -> str:
        return in_template(
            tokenizer, messages, values, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip

    try:
        return applied(history)
    except TemplateError:
        return applied([message for message in history if message["role"] != "system"])


def _parts(request: Any, scored: Iterator[Continuation], windows: Iterator[list[Continuation]]) -> list[Continuation]:
    """The continuations that a request scores; none where it asks for an answer."""
    if request.request_type == "loglikelihood":
        return [next(scored)]
    return next(windows) if request.request_type == "loglikelihood_rolling" else []


def _try_answers(level: TaskLevel, item: Item, requests: Sequence[Any], counts: Sequence[int], metric: str) -> None:
    """Judge an item that is answered in words by each text of its document: a metric that is no score is seen early.

    Raises:
        ValueError: the metric is no score (_scores).
    """
    if any(request.request_type != "generate_until" for request in requests):
        return
    results = []
    for text in _texts(item.doc):
        with contextlib.suppress(*UNUSABLE):  # texts that are no answers
            results += _results(
                level, [item], [requests], [counts], Responses(np.zeros(0), np.zeros(0), [text] * len(requests))
            )
    if results:
        _scores(level, metric, results)


def _texts(value: Any) -> list[str]:
    """The texts of a document, those in its lists and objects too."""
    if isinstance(value, Mapping | list | tuple):
        return [text for part in (value.values() if isinstance(value, Mapping) else value) for text in _texts(part)]
    return [value] if isinstance(value, str) else []


def _chance(level: TaskLevel, items: Sequence[Item], requests: Sequence[Sequence[Any]], metric: str) -> float:
    """Mean score of a model that knows nothing (guessing_score); 0 where items have no options.

    Raises:
        ValueError: the metric is no score (_scores).
    """
    if any(task.OUTPUT_TYPE != "multiple_choice" for task in level.tasks):
        return 0.0
    names = metric_names(level)
    filters, chances, guessed = [key for _, key in names.values()], [], []
    for item, own in zip(items, requests, strict=True):
        task = level.tasks[item.task]
        if scores_itself(task):
            judged = [task.process_results(item.doc, ranking) for ranking in _rankings(len(own))]
            chances.append(_scores(level, metric, [dict.fromkeys(filters, one) for one in judged])[metric].mean())
            continue
        choices = [str(choice).strip() for choice in task.doc_to_choice(item.doc)]
        if set(choices) <= set(LETTERS):  # which mean other texts for every item
            choices = [f"{item.item} {choice}" for choice in choices]
        guessed.append((choices, golds(task, item.doc)))
    if guessed:
        among_options = guessing_score(*zip(*guessed, strict=True)) if names[metric][0] in GUESSED else 0.0
        chances += [among_options] * len(guessed)
    return float(np.mean(chances))


def _rankings(count: int) -> list[list[tuple[float, bool]]]:
    """As many made-up responses to `count` options, each a ranking; every option has every rank in one of them."""
    return [[(-float((place + shift) % count), False) for place in range(count)] for shift in range(count)]


def _judge(
    level: TaskLevel, items: Sequence[Item], requests: Sequence[Sequence[Any]], counts: Sequence[Sequence[int]],
    metric: str, chance: float, responses: Responses,
) -> Outcome:  # fmt: skip
    """What lm-eval's filters and metrics make of the model's responses.

    Raises:
        ValueError: the level's metric is no score of every item (_scores).
    """
    results = _results(level, items, requests, counts, responses)
    values = _scores(level, metric, results)
    columns = {}
    if all(task.OUTPUT_TYPE == "multiple_choice" for task in level.tasks):
        columns = _option_columns(level, items, requests)
    elif all(own[0].request_type == "generate_until" for own in requests):
        key = metric_names(level)[metric][1]
        columns["predicted"] = np.array([str(own[0].filtered_resps[key]) for own in requests], dtype=str)
    else:
        columns["log_likelihood"] = np.array([_log_likelihood(own) for own in requests])
    return Outcome(values, columns, metric, chance, _totals(level, results, values))


def _results(
    level: TaskLevel, items: Sequence[Item], requests: Sequence[Sequence[Any]], counts: Sequence[Sequence[int]],
    responses: Responses,
) -> list[dict[str, Mapping[str, Any]]]:  # fmt: skip
    """Of every item, by filter, what its task's metrics make of the responses."""
    _answer(requests, counts, responses)
    for index, task in enumerate(level.tasks):
        asked = [request for item, own in zip(items, requests, strict=True) if item.task == index for request in own]
        with instances_kept(task):
            task._instances = asked
            if asked:
                task.apply_filters()
    return [
        {
            key: level.tasks[item.task].process_results(item.doc, [request.filtered_resps[key] for request in own])
            for key in own[0].filtered_resps
        }
        for item, own in zip(items, requests, strict=True)
    ]


def _scores(
    level: TaskLevel, metric: str, results: Sequence[Mapping[str, Mapping[str, Any]]]
) -> dict[str, np.ndarray]:  # fmt: skip
    """The values of each item, (items,), by each metric that is a score: in [0, 1], as all statistics take it.

    Raises:
        ValueError: a metric has no number for some item, or `metric`, the level's, is no score.
    """
    values = {name: _values(level, name, pair, results) for name, pair in metric_names(level).items()}
    beyond = {name: own[~((own >= 0) & (own <= 1))] for name, own in values.items()}
    scores = {name: own for name, own in values.items() if not len(beyond[name])}
    if metric not in scores:
        told = f"{metric} is {beyond[metric][0]:g} for an item, and a score is in [0, 1]"
        others = f"--lm_eval_metric may be {', '.join(scores)}" if scores else "none of its metrics is one"
        raise ValueError(f"--lm_eval_tasks {level.name}: {told}; {others}")
    return scores


def _answer(
    requests: Sequence[Sequence[Any]], counts: Sequence[Sequence[int]], responses: Responses
) -> None:  # fmt: skip
    """Put the model's responses into the requests, in the form that lm-eval's models return them."""
    texts = iter(responses.texts)
    at = 0
    for own, of_item in zip(requests, counts, strict=True):
        for request, count in zip(own, of_item, strict=True):
            part = slice(at, at + count)
            at += count
            if request.request_type == "generate_until":
                found: Any = next(texts)
            elif request.request_type == "loglikelihood_rolling":
                found = float(sum(responses.log_likelihood[part].tolist()))
            else:
                found = float(responses.log_likelihood[part][0]), bool(responses.greedy[part][0])
            request.resps = [found] * request.repeats
            request.filtered_resps = {}


def _values(
    level: TaskLevel, name: str, pair: tuple[str, str], results: Sequence[Mapping[str, Mapping[str, Any]]]
) -> np.ndarray:
    """A metric's value of each item, (items,)."""
    metric, key = pair
    try:
        found = [probability_of(own[key]) if metric == PER_BYTE else float(own[key][metric]) for own in results]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{level.name}: {name} is not a number for every item: {error}") from error
    return np.array(found)


def probability_of(result: Mapping[str, Any]) -> float:
    """Geometric mean of the probabilities of a text's bytes, in (0, 1]: 2^-bits_per_byte of the text.

    It is higher where better and a score of each text, as the scores of all other levels; lm-eval's perplexities are of
    all texts together.
    """
    log_likelihood, count = next(result[name] for name in WHOLE_TEXT if name in result)
    return math.exp(log_likelihood / max(1, count))


def _option_columns(
    level: TaskLevel, items: Sequence[Item], requests: Sequence[Sequence[Any]]
) -> dict[str, np.ndarray]:  # fmt: skip
    """What the comparison of answers needs of multiple-choice items: options' log-likelihoods, right and chosen ones.

    What is chosen by acc is `predicted`, by acc_norm `predicted_norm`. A task that scores itself chooses none.

    Source of the choices: lm-evaluation-harness, api/task.py, ConfigurableTask.process_results.
    """
    likelihoods, lengths, predicted, normalized, gold = [], [], [], [], []
    for item, own in zip(items, requests, strict=True):
        task = level.tasks[item.task]
        choices = task.doc_to_choice(item.doc)
        scores = np.array([request.resps[0][0] for request in own[: len(choices)]])
        likelihoods.append(scores)
        lengths.append([max(1, len(choice)) for choice in choices])
        predicted.append(int(np.argmax(scores)))
        normalized.append(int(np.argmax(scores / np.array([float(len(choice)) for choice in choices]))))
        gold.append(golds(task, item.doc)[0])
    chosen = {"predicted": np.array(predicted), "predicted_norm": np.array(normalized)}
    return {
        "option_count": np.array(list(map(len, likelihoods))), "option_log_likelihood": np.concatenate(likelihoods),
        "option_length": np.concatenate(lengths), "gold": np.array(gold),
        **({} if any(map(scores_itself, level.tasks)) else chosen),
    }  # fmt: skip


def _log_likelihood(requests: Sequence[Any]) -> float:
    """Sum over the requests of an item that are scored, in nats."""
    scored = [request.resps[0] for request in requests if request.request_type != "generate_until"]
    return float(sum(own[0] if isinstance(own, tuple) else own for own in scored))


def _totals(
    level: TaskLevel, results: Sequence[Mapping[str, Mapping[str, Any]]], scores: Container[str]
) -> dict[str, float]:
    """A single task's metrics that are no scores, by lm-eval's aggregation over all items; those that are numbers."""
    if len(level.tasks) > 1:
        return {}
    (task,) = level.tasks
    aggregations: dict[str, Callable[[list[Any]], Any]] = task.aggregation()
    totals = {}
    for key in results[0]:
        for metric, aggregate in aggregations.items():
            name = metric if len(results[0]) == 1 else f"{metric},{key}"
            if name in scores or metric not in results[0][key]:
                continue
            value = aggregate([own[key][metric] for own in results])
            if isinstance(value, int | float | np.number) and math.isfinite(value):
                totals[name] = float(value)
    return totals
