"""Tasks of lm-evaluation-harness, which is optional (requirements-lm-eval.txt): found, read, and checked.

lm_eval is imported only in the functions that need it: that takes seconds. Prompts, few-shot examples, filters and
metrics are made by its own code.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib.util
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from llm_tasks.engine.encoding import Stop

logger = logging.getLogger(__name__)

FEWSHOT_SEED = 1234  # simple_evaluate's default, so that random few-shot examples are the same
PER_BYTE = "byte_probability"  # our metric of tasks that score whole texts: see probability_of
WHOLE_TEXT = ("byte_perplexity", "bits_per_byte")
GUESSED = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")  # metrics of a choice among options
GREEDY = ("until", "max_gen_toks", "do_sample", "temperature")  # what generation arguments may hold
OF_SAMPLING = ("top_p", "top_k", "min_p", "typical_p")  # of no effect on greedy answers
UNHASHED = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata")  # where data are; the data are hashed
# What reading a task raises where its files, its data or the two together are not usable.
UNUSABLE = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, TemplateError)


class TaskLevel(NamedTuple):
    """One task or group of tasks, which becomes a level.

    Fields:
        name: as lm-eval calls it.
        tasks: of lm_eval.api.task.Task.
        weighted: names of the metrics of a group that lm-eval weights by size, as a mean over all items does; empty
            for a single task.
    """

    name: str
    tasks: tuple[Any, ...]
    weighted: tuple[str, ...] = ()


def check_installed() -> None:
    """Raises ValueError, with the command that installs it, where lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            "--lm_eval_tasks needs lm-evaluation-harness: python -m pip install -r requirements-lm-eval.txt"
        )


@functools.cache
def task_manager(include_path: Path | None) -> Any:
    """lm-eval's list of tasks, its own and those in a folder.

    Raises:
        ValueError: lm-eval is not installed, or there is no such folder.
    """
    check_installed()
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise ValueError(f"--include_path {include_path}: there is no such folder")
    return TaskManager(include_path=include_path)


@functools.cache
def load_levels(names: tuple[str, ...], include_path: Path | None, num_fewshot: int | None) -> list[TaskLevel]:
    """The tasks by these names, each or each group as a level; tags, and groups without a score, by their tasks.

    Args:
        include_path: a folder of more task files, which come before lm-eval's own of the same name.
        num_fewshot: examples before each question; None: as each task says. A task that says 0 keeps it.
    Raises:
        ValueError: no task of a name (the message has near ones), a task twice, or one that cannot be read or measured.
    """
    manager = task_manager(include_path)
    levels: list[TaskLevel] = []
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=5)
            told = f"; near ones are {', '.join(near)}" if near else ""
            raise ValueError(f"--lm_eval_tasks {name}: lm-eval {version('lm_eval')} has no task of this name{told}")
        try:
            found = manager.load([name])
        except UNUSABLE as error:
            raise ValueError(f"--lm_eval_tasks {name} cannot be read: {one_line(error)}") from error
        levels += _levels_of(name, found)
    seen: set[str] = set()
    for level in levels:
        for task in level.tasks:
            if task.task_name in seen:
                raise ValueError(f"--lm_eval_tasks {' '.join(names)}: {task.task_name} is among them twice")
            seen.add(task.task_name)
            _prepare(task, num_fewshot)
    return levels


def _levels_of(name: str, found: Mapping[str, Any]) -> list[TaskLevel]:
    """One level of a group that has a score, else one of each task."""
    group = found["groups"].get(name)
    tasks = list(found["tasks"].values())
    if group is not None and group.has_aggregation:
        weighted = [own.metric for own in group.aggregate_metric_list if own.weight_by_size]
        if not weighted:
            raise ValueError(
                f"--lm_eval_tasks {name}: lm-eval weights this group's tasks alike, however many items they have; "
                f"ours are means over items. Name its tasks: {' '.join(task.task_name for task in tasks[:5])} …"
            )
        return [TaskLevel(name, tuple(tasks), tuple(weighted))]
    return [TaskLevel(task.task_name, (task,)) for task in tasks]


def _prepare(task: Any, num_fewshot: int | None) -> None:
    """Set the number of few-shot examples and the seed that draws them, and make the task's requests.

    Source: lm-evaluation-harness, evaluator.py, simple_evaluate.
    """
    where = f"--lm_eval_tasks {task.task_name}"
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(f"{where} executes what the model writes, which this program does not")
    if getattr(task, "MULTIMODAL", False):
        raise ValueError(f"{where} has images or sound; the models here take text")
    given = task.get_config("num_fewshot")
    if num_fewshot is not None and given != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif num_fewshot:
        logger.warning("%s says itself that it has no few-shot examples: --num_fewshot %d is not obeyed by it", where,
                       num_fewshot)  # fmt: skip
    elif given is None:
        task.set_config(key="num_fewshot", value=0)
    task._instances = made_requests(task)
    for request in task.instances:
        if request.request_type == "generate_until" and (reason := not_greedy(request.args[1])):
            raise ValueError(f"{where}: {reason}; answers here are greedy")
    _check_gold(task, where)


def made_requests(task: Any, chat_template: Callable[..., str] | None = None) -> list[Any]:
    """All requests of a task, made anew with the few-shot examples that simple_evaluate draws; the task keeps its own.

    Raises:
        ValueError: they cannot be made of the data.
    """
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    chat = {} if chat_template is None else {
        "apply_chat_template": True, "fewshot_as_multiturn": True, "chat_template": chat_template,
    }  # fmt: skip
    with instances_kept(task):
        try:
            task.build_all_requests(**chat)
        except UNUSABLE as error:
            raise ValueError(f"--lm_eval_tasks {task.task_name} cannot be asked: {one_line(error)}") from error
        return task.instances


@contextlib.contextmanager
def instances_kept(task: Any) -> Iterator[None]:
    """Afterwards the task has the requests that it had before: it is shared by all that this process measures."""
    kept = getattr(task, "_instances", None)
    try:
        yield
    finally:
        task._instances = kept


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def not_greedy(arguments: Mapping[str, Any]) -> str:
    """Why a task's generation arguments ask for more than greedy answers; empty where they do not."""
    from lm_eval.models.utils import normalize_gen_kwargs

    known = normalize_gen_kwargs(dict(arguments))
    if known["do_sample"]:
        return f"do_sample {arguments.get('do_sample')} with temperature {known.get('temperature')} draws at random"
    more = [name for name in known if name not in (*GREEDY, *OF_SAMPLING)]
    return f"{', '.join(f'{name} {known[name]}' for name in more)} is more than greedy generation" if more else ""


def stop_of(arguments: Mapping[str, Any], end_text: str | None, default: int = 256) -> Stop:
    """Where an answer with a task's generation arguments ends.

    Args:
        end_text: the end-of-text token as a text.
        default: most tokens where the arguments do not say it, as lm-eval's models have it.
    """
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    known = normalize_gen_kwargs(dict(arguments), default)
    return Stop(tuple(handle_stop_sequences(known["until"], eos=end_text)), known["max_gen_toks"])


def _check_gold(task: Any, where: str) -> None:
    """Raises ValueError, with the first such item, where an item has no right answer."""
    seen: set[int] = set()
    for request in task.instances:
        if request.doc_id in seen:
            continue
        seen.add(request.doc_id)
        told = f"{where}: item {request.doc_id + 1} of {task.config.dataset_name or 'its data'} has no gold answer"
        if task.OUTPUT_TYPE == "multiple_choice":
            choices = task.doc_to_choice(request.doc)
            if not golds(task, request.doc):
                target = task.doc_to_text(request.doc) if task.multiple_input else task.doc_to_target(request.doc)
                raise ValueError(f"{told}: {target!r} is none of its {len(choices)} choices; name a split that has")
        elif task.OUTPUT_TYPE is not None and task.doc_to_target(request.doc) in (None, "", []):
            raise ValueError(f"{told}; name a split that has")


def golds(task: Any, doc: Mapping[str, Any]) -> list[int]:
    """The indices of the right choices of a multiple-choice item; none where it has no valid one.

    Source: lm-evaluation-harness, api/task.py, ConfigurableTask.process_results, which counts such an item as wrong.
    """
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    found = gold if isinstance(gold, list) else [gold]
    indices = [choices.index(own) if isinstance(own, str) and own in choices else own for own in found]
    return [int(own) for own in indices if isinstance(own, int) and 0 <= own < len(choices)]


def scores_itself(task: Any) -> bool:
    """Whether a task makes its metrics of the responses by a function of its own, not by lm-eval's."""
    from lm_eval.api.task import ConfigurableTask

    by_class = type(task).process_results is not ConfigurableTask.process_results
    return by_class or callable(task.config.process_results)


def metric_names(level: TaskLevel) -> dict[str, tuple[str, str]]:
    """By our name of it, each (metric, filter) of a level that is a mean over its items and higher where better.

    A metric is named as lm-eval names it, with its filter where the task has several: "exact_match,strict-match".
    """
    shared: dict[str, tuple[str, str]] | None = None
    for task in level.tasks:
        filters = [own.name for own in task._filters]
        better = task.higher_is_better()
        names = [
            metric for metric, aggregate in task.aggregation().items()
            if getattr(aggregate, "__name__", "") == "mean" and better.get(metric, True)
            and (not level.weighted or metric in level.weighted)
        ]  # fmt: skip
        own = {metric if len(filters) == 1 else f"{metric},{key}": (metric, key) for metric in names for key in filters}
        shared = own if shared is None else {name: pair for name, pair in shared.items() if name in own}
        if not own and any(name in task.aggregation() for name in WHOLE_TEXT):
            return {PER_BYTE: (PER_BYTE, filters[0])}
    return shared or {}


def choose_metric(level: TaskLevel, wanted: Sequence[str]) -> str:
    """The metric that is a level's score: the first of `wanted` that it has, without any its first.

    Raises:
        ValueError: it has none of them, or none that is a score of each item.
    """
    names = metric_names(level)
    if not names:
        known = ", ".join(dict.fromkeys(name for task in level.tasks for name in task.aggregation()))
        raise ValueError(
            f"--lm_eval_tasks {level.name}: its metrics ({known}) are of all items together, or lower where better; "
            "a level's score is a mean over items"
        )
    for name in wanted:
        if name in names:
            return name
        if name in {metric for metric, _ in names.values()}:  # without the filter's name: that of the first
            return next(own for own, (metric, _) in names.items() if metric == name)
    if wanted:
        raise ValueError(f"--lm_eval_metric {' '.join(wanted)}: {level.name} has {', '.join(names)}")
    return next(iter(names))


def content(levels: Iterable[TaskLevel]) -> dict[str, Any]:
    """lm-eval's version, and a hash of all that tasks ask and how they judge: no path is part of it.

    lm_eval_arithmetic is 2 where a task scores its options itself: before, the chance level of such a task was wrong.
    It is 3 where answers are generated: before, a stop text that is a special token of the model ended none.
    """
    levels = list(levels)
    digest = hashlib.sha256()
    for level in levels:
        for task in level.tasks:
            settings = task.config.to_dict(keep_callable=True)
            config = {name: value for name, value in settings.items() if name not in UNHASHED}
            asked = [[request.request_type, request.args, request.doc] for request in task.instances]
            for part in (level.name, level.weighted, task.VERSION, config, asked):
                digest.update(json.dumps(part, sort_keys=True, default=_as_text).encode())
            digest.update(_file_of(type(task)))
    of_itself = [task.OUTPUT_TYPE == "multiple_choice" and scores_itself(task) for own in levels for task in own.tasks]
    requests = (request for own in levels for task in own.tasks for request in task.instances)
    generates = any(request.request_type == "generate_until" for request in requests)
    found = {"lm_eval_version": version("lm_eval"), "data_content_sha256": digest.hexdigest()}
    return found | ({"lm_eval_arithmetic": 3 if generates else 2} if generates or any(of_itself) else {})


def _as_text(value: object) -> str:
    """A value that JSON does not have, the same in every process: a function by its source and by its file."""
    if not callable(value):
        return str(value)
    try:
        source = inspect.getsource(value)
    except (TypeError, OSError):
        source = getattr(value, "__qualname__", type(value).__qualname__)
    return source + _file_of(value).decode(errors="replace")


def _file_of(value: Any) -> bytes:
    """The file of a function or class, with all that it calls there; nothing of lm-eval's own, whose version tells."""
    function = inspect.unwrap(getattr(value, "func", value))  # of functools.partial
    try:
        path = inspect.getsourcefile(function)
    except TypeError:  # an object that is called, or a function without a file
        path = None if inspect.isbuiltin(function) else inspect.getsourcefile(type(function))
    own = Path(importlib.util.find_spec("lm_eval").origin).parent
    return b"" if path is None or Path(path).resolve().is_relative_to(own.resolve()) else Path(path).read_bytes()
