"""What is read off a task of lm-evaluation-harness, by stand-ins for its tasks: lm_eval need not be installed."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llm_tasks.levels import Responses, item_id
from llm_tasks.settings import own_task
from llm_tasks.tasks import lm_eval_levels, lm_eval_tasks
from llm_tasks.tasks.lm_eval_levels import Item
from llm_tasks.tasks.lm_eval_tasks import TaskLevel, metric_names


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def a_task(metrics: dict[str, bool], **more: Any) -> SimpleNamespace:
    """A task of multiple choice with these metrics, each a mean, and whether higher is better."""
    return SimpleNamespace(
        task_name="stub", OUTPUT_TYPE="multiple_choice", multiple_input=False, instances=[],
        _filters=[SimpleNamespace(name="none")], aggregation=lambda: dict.fromkeys(metrics, mean),
        higher_is_better=lambda: metrics, doc_to_choice=lambda doc: doc["choices"],
        doc_to_target=lambda doc: doc["gold"], **more,
    )  # fmt: skip


def test_scores_are_means_that_are_higher_where_better_and_that_all_tasks_of_a_group_have():
    loss, other = a_task({"acc": True, "loss": False, "f1": True}), a_task({"f1": True, "loss": False})
    assert metric_names(TaskLevel("t", (loss,))) == {"acc": ("acc", "none"), "f1": ("f1", "none")}
    assert metric_names(TaskLevel("g", (loss, other))) == {"f1": ("f1", "none")}
    assert metric_names(TaskLevel("g", (loss, loss), ("acc",))) == {"acc": ("acc", "none")}


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1])
def test_what_is_beyond_zero_and_one_or_no_number_is_no_score(value: float):
    level = TaskLevel("t", (a_task({"acc": True}),))
    with pytest.raises(ValueError, match=f"acc is {value:g} for an item, and a score is in"):
        lm_eval_levels._scores(level, "acc", [{"none": {"acc": 1.0}}, {"none": {"acc": value}}])


def test_chance_is_a_mean_over_the_items_of_all_tasks_of_a_group(monkeypatch: pytest.MonkeyPatch):
    """One item whose task scores it 0.7 whatever the ranking, three of four options each; exact_match has no chance."""
    own = a_task(
        {"acc": True, "exact_match": True}, process_results=lambda doc, responses: {"acc": 0.7, "exact_match": 0.7}
    )
    monkeypatch.setattr(lm_eval_levels, "scores_itself", lambda task: task is own)
    level = TaskLevel("g", (own, a_task({"acc": True, "exact_match": True})))
    docs = [{"choices": [f"{number} {option}" for option in range(4)], "gold": number} for number in range(4)]
    items = [Item(str(number), "", min(number, 1), number, doc) for number, doc in enumerate(docs)]
    requests = [[None] * 4] * 4
    assert lm_eval_levels._chance(level, items, requests, "acc") == pytest.approx((0.7 + 3 * 0.25) / 4)
    assert lm_eval_levels._chance(level, items, requests, "exact_match") == pytest.approx(0.7 / 4)


def prepared(said: int | None, asked: int | None, **more: Any) -> tuple[list[tuple[str, Any]], list[int]]:
    """What is set in the config of a task that says so many few-shot examples itself, and the seeds that draw them."""
    changes: list[tuple[str, Any]] = []
    seeds: list[int] = []
    task = a_task(
        {}, get_config=lambda name: said, set_config=lambda key, value: changes.append((key, value)),
        set_fewshot_seed=lambda seed: seeds.append(seed), build_all_requests=lambda: None, **more,
    )  # fmt: skip
    lm_eval_tasks._prepare(task, asked)
    return changes, seeds


def test_a_task_that_says_that_it_has_no_examples_keeps_none():
    assert prepared(0, 5) == ([], [1234])
    assert prepared(2, 5) == prepared(None, 5) == ([("num_fewshot", 5)], [1234])
    assert prepared(2, 0) == prepared(None, None) == ([("num_fewshot", 0)], [1234])
    assert prepared(2, None) == ([], [1234])


@pytest.mark.parametrize(
    ("field", "told"), [("UNSAFE_CODE", "executes what the model writes"), ("MULTIMODAL", "images")]
)
def test_a_task_that_runs_code_or_shows_images_is_refused(field: str, told: str):
    with pytest.raises(ValueError, match=f"--lm_eval_tasks stub .*{told}"):
        prepared(None, None, **{field: True})


def request(kind: str = "loglikelihood", **more: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"request_type": kind, "repeats": 1, "doc_id": 0, "idx": 0, **more})


def two_tasks(doc: dict[str, Any], **more: Any) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Tasks "one" and "two" of the same document."""
    tasks = a_task({"acc": True}, **more), a_task({"acc": True}, **more)
    for task, name in zip(tasks, ("one", "two"), strict=True):
        task.task_name, task.instances = name, [request(doc=doc)]
    return tasks


def test_the_same_document_of_two_tasks_is_two_items():
    items = lm_eval_levels.items_of(TaskLevel("g", two_tasks({"text": "same"})), None)
    assert [(item.task, item.doc) for item in items] == [(0, {"text": "same"}), (1, {"text": "same"})]
    assert len({item.content for item in items}) == 2


def test_items_are_grouped_by_a_long_text_that_they_share_or_by_their_task():
    passage = "p" * 201
    docs = [{"text": passage, "question": "1"}, {"text": passage, "question": "2"}, {"text": passage + "x"},
            {"text": "q" * 200, "question": "1"}, {"text": "q" * 200, "question": "2"}]  # fmt: skip
    items = [Item(str(number), f"content {number}", 0, number, doc) for number, doc in enumerate(docs)]
    one, two = two_tasks({})
    groups = lm_eval_levels._groups(TaskLevel("t", (one,)), items)
    assert groups == [item_id(passage)] * 2 + ["content 2", "content 3", "content 4"]
    assert lm_eval_levels._groups(TaskLevel("g", (one, two)), [items[0], items[1]._replace(task=1)]) == ["one", "two"]


def test_requests_go_to_the_items_of_their_task_in_their_order():
    second, first, of_other = request(idx=1), request(), request()
    items = [Item("b", "b", 1, 0, {}), Item("a", "a", 0, 0, {})]
    assert lm_eval_levels._requests([[second, first], [of_other]], items) == [[of_other], [first, second]]


def test_responses_are_put_into_requests_by_hand():
    requests = [[request(), request(repeats=2)], [request("loglikelihood_rolling")], [request("generate_until")]]
    responses = Responses(np.array([-1.0, -2.0, -3.0, -4.0]), np.array([True, False, True, True]), ["text"])
    lm_eval_levels._answer(requests, [[1, 1], [2], [0]], responses)
    found = [[one.resps for one in own] for own in requests]
    assert found == [[[(-1.0, True)], [(-2.0, False)] * 2], [[-3.0 - 4.0]], [["text"]]]


def test_the_responses_of_a_group_are_filtered_by_the_filters_of_each_task():
    doc = {"text": "same"}
    tasks = two_tasks(doc, process_results=lambda doc, responses: responses)
    for task in tasks:

        def apply_filters(task: SimpleNamespace = task) -> None:
            for one in task._instances:
                one.filtered_resps = {"none": task.task_name}

        task.apply_filters = apply_filters
    items = [Item("a", "a", 0, 0, doc), Item("b", "b", 1, 0, doc)]
    responses = Responses(np.zeros(2), np.zeros(2), [])
    results = lm_eval_levels._results(TaskLevel("g", tasks), items, [[request()], [request()]], [[1], [1]], responses)
    assert results == [{"none": ["one"]}, {"none": ["two"]}]


def test_options_are_chosen_by_likelihood_and_by_likelihood_of_a_character(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lm_eval_levels, "scores_itself", lambda task: False)
    item = Item("a", "a", 0, 0, {"choices": ["a", "bbbb"], "gold": 1})
    requests = [[request(resps=[(-2.0, False)]), request(resps=[(-4.0, False)])]]
    columns = lm_eval_levels._option_columns(TaskLevel("t", (a_task({}),)), [item], requests)
    assert {name: column.tolist() for name, column in columns.items()} == {
        "option_count": [2], "option_log_likelihood": [-2.0, -4.0], "option_length": [1, 4], "gold": [1],
        "predicted": [0], "predicted_norm": [1],
    }  # fmt: skip


def test_rankings_and_probabilities_by_hand():
    likelihoods = [[likelihood for likelihood, _ in ranking] for ranking in lm_eval_levels._rankings(3)]
    assert likelihoods == [[0, -1, -2], [-1, -2, 0], [-2, 0, -1]]
    assert lm_eval_levels.probability_of({"bits_per_byte": (-3 * math.log(2), 3)}) == pytest.approx(1 / 2)


@pytest.mark.parametrize(("gold", "expected"), [(-1, []), (2, []), (1, [1]), ("y", [1]), ([0, "y"], [0, 1])])
def test_what_is_none_of_the_choices_is_no_gold_answer(gold: Any, expected: list[int]):
    assert lm_eval_tasks.golds(a_task({}), {"choices": ["x", "y"], "gold": gold}) == expected


def test_a_group_is_scored_by_the_metrics_that_it_weights_by_size():
    task = a_task({"acc": True, "f1": True})
    metrics = [SimpleNamespace(metric=name, weight_by_size=by_size) for name, by_size in (("acc", True), ("f1", False))]
    group = SimpleNamespace(has_aggregation=True, aggregate_metric_list=metrics)
    found = {"groups": {"g": group}, "tasks": {"stub": task}}
    assert lm_eval_tasks._levels_of("g", found) == [TaskLevel("g", (task,), ("acc",))]
    group.aggregate_metric_list = metrics[1:]
    with pytest.raises(ValueError, match="--lm_eval_tasks g: lm-eval weights this group's tasks alike"):
        lm_eval_tasks._levels_of("g", found)


def test_examples_in_a_chat_template_are_turns():
    seen: dict[str, Any] = {}
    task = a_task({}, set_fewshot_seed=lambda seed: None, build_all_requests=lambda **more: seen.update(more))
    lm_eval_tasks.made_requests(task, print)
    assert seen == {"apply_chat_template": True, "fewshot_as_multiturn": True, "chat_template": print}


def test_what_tasks_ask_and_how_they_judge_tells_runs_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lm_eval_tasks, "version", lambda name: "0.4")
    monkeypatch.setattr(lm_eval_tasks, "_file_of", lambda value: b"")
    monkeypatch.setattr(lm_eval_tasks, "scores_itself", lambda task: task.of_itself)

    def told(kind: str = "loglikelihood", text: str = "a", doc: str = "b", number: int = 1, of_itself: bool = False):
        config = SimpleNamespace(to_dict=lambda keep_callable: {"metadata": "where it lies"})
        task = a_task({}, VERSION=number, config=config, of_itself=of_itself)
        task.instances = [request(kind, args=(text,), doc=doc)]
        found = lm_eval_tasks.content([TaskLevel("t", (task,))])
        return found["data_content_sha256"], found.get("lm_eval_arithmetic")

    assert told() == told() and told()[1] is None
    others = [told(text="x"), told(doc="x"), told(number=2), told("generate_until"), told(of_itself=True)]
    assert len({told()[0], *(digest for digest, _ in others[:4])}) == 5
    assert [arithmetic for _, arithmetic in others] == [None, None, None, 3, 2]


def test_options_reach_the_tasks_and_their_items(monkeypatch: pytest.MonkeyPatch):
    task = a_task({"acc": True})
    asked = []
    monkeypatch.setattr(lm_eval_tasks, "load_levels", lambda *given: asked.append(given) or [TaskLevel("t", (task,))])
    monkeypatch.setattr(own_task, "items_of", lambda level, count: f"{count} of {level.name}")
    values = own_task.Values(
        lm_eval_tasks=["t"], include_path=Path("more"), num_fewshot=3, max_items=5, answer_mode="letter",
        task_file=None, task_name=None,
    )  # fmt: skip
    assert own_task.load(values) == [(TaskLevel("t", (task,)), "5 of t", "acc")]
    assert asked == [(("t",), Path("more"), 3)]
    for kind, readers in (("loglikelihood", ("lm_eval",)), ("generate_until", ("lm_eval", "answer"))):
        task.instances = [request(kind)]
        assert own_task.readers(values) == readers
