"""What is read off a task of lm-evaluation-harness, by stand-ins for its tasks: lm_eval need not be installed."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

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
