"""lm-evaluation-harness's tasks: the same items, requests and scores by its own HFLM, by EngineLM and by own_task.py.

Skipped where lm_eval is not installed (requirements-lm-eval.txt).
"""

import inspect
import json
import logging
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from local_lm_eval_tasks import MEAN, TASKS, rows, write_model, write_rows, write_task, write_tasks

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from llm_tasks import own_task as script  # noqa: E402
from llm_tasks.engine.encoding import Stop  # noqa: E402
from llm_tasks.lm_eval_bridge import EngineLM  # noqa: E402
from llm_tasks.tasks import lm_eval_tasks  # noqa: E402

NAMES = [*TASKS, "both"]
Message = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("lm_eval") / "tasks")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("lm_eval_model"))


@pytest.fixture(scope="module", autouse=True)
def local_tasks_alone(folder: Path):
    """Its own 10,000 tasks take seconds to list, and are not asked for here."""
    made: dict[Path, TaskManager] = {}

    def manager(include_path: Path) -> TaskManager:
        return made.setdefault(include_path, TaskManager(include_path=include_path, include_defaults=False))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval_tasks, "task_manager", manager)
        yield
    lm_eval_tasks.load_levels.cache_clear()


def evaluated(kind: type, model: Path, folder: Path, names: list[str], **more: Any) -> dict[str, Any]:
    lm = kind(pretrained=str(model), device="cpu", dtype="float32", batch_size=3)
    manager = TaskManager(include_path=folder, include_defaults=False)
    return lm_eval.simple_evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0, **more)


@pytest.fixture(scope="module")
def theirs(model: Path, folder: Path) -> dict[str, Any]:
    """By its own model: all tasks, and the group."""
    found = evaluated(HFLM, model, folder, [name for name in NAMES if name not in ("choices", "both")])
    group = evaluated(HFLM, model, folder, ["both"])
    return {part: {**found[part], **group[part]} for part in ("results", "samples")}


@pytest.fixture(scope="module")
def ours(model: Path, folder: Path) -> dict[str, Any]:
    """By the engine as a model of lm-eval."""
    found = evaluated(EngineLM, model, folder, [name for name in NAMES if name not in ("choices", "both")])
    group = evaluated(EngineLM, model, folder, ["both"])
    return {part: {**found[part], **group[part]} for part in ("results", "samples")}


@pytest.fixture(scope="module")
def run(model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """By own_task.py: results and items of a run on all tasks."""
    output = tmp_path_factory.mktemp("lm_eval_runs") / "dense"
    names = [name for name in NAMES if name != "choices"]
    assert script.main([*words(model, folder, *names), "--output_dir", str(output)]) == 0
    items = dict(np.load(output / "items.npz"))
    return json.loads((output / "all_results.json").read_text()), items


def words(model: Path, folder: Path, *names: str) -> list[str]:
    asked = ["--model_name_or_path", str(model), "--lm_eval_tasks", *names, "--include_path", str(folder)]
    return [*asked, "--precision", "no", "--dtype", "float32", "--device", "cpu"]


def rounded(value: Any) -> Any:
    """Log-likelihoods to five digits, all else as it is."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-5, abs=1e-4)
    return [rounded(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", [*TASKS, "choices_few"])
def test_every_item_is_answered_alike(name: str, theirs: dict[str, Any], ours: dict[str, Any]):
    theirs, ours = theirs["samples"][name], ours["samples"][name]
    assert len(theirs) == len(ours) >= 5
    for one, other in zip(theirs, ours, strict=True):
        assert other["arguments"] == one["arguments"] and other["doc_hash"] == one["doc_hash"]
        assert listed(other["resps"]) == rounded(one["resps"])
        for metric in one["metrics"]:
            assert listed(other[metric]) == rounded(one[metric])


def listed(value: Any) -> Any:
    return list(map(listed, value)) if isinstance(value, list | tuple) else value


def test_scores_are_equal(theirs: dict[str, Any], ours: dict[str, Any]):
    for name in [*TASKS, "choices_few", "both"]:
        one, other = theirs["results"][name], ours["results"][name]
        assert {key: rounded(value) for key, value in one.items()} == other, name
        exact = [key for key in one if key.startswith(("acc", "exact_match")) and "stderr" not in key]
        assert [other[key] for key in exact] == [one[key] for key in exact]


def test_own_task_measures_the_same_items(run: tuple, theirs: dict[str, Any]):
    result, items = run
    levels = {level["level"]: level for level in result["levels"]}
    assert list(levels) == [name for name in NAMES if name != "choices"]
    assert [level["difficulty"] for level in levels.values()] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert levels["letters"]["score"] == theirs["results"]["letters"]["acc,none"]
    assert levels["last_word"]["score"] == theirs["results"]["last_word"]["acc,none"]
    assert levels["last_word"]["metrics"]["perplexity"] == rounded(theirs["results"]["last_word"]["perplexity,none"])
    assert levels["answers"]["metric"] == "exact_match,first"
    for key in ("first", "whole"):
        name = f"exact_match,{key}"
        assert levels["answers"]["metrics"][name] == theirs["results"]["answers"][name]
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert levels["texts"]["metrics"][name] == rounded(theirs["results"]["texts"][f"{name},none"])
    probabilities = [np.exp(np.divide(*sample["byte_perplexity"])) for sample in theirs["samples"]["texts"]]
    assert levels["texts"]["metric"] == "byte_probability" and levels["texts"]["score"] == rounded(
        float(np.mean(probabilities))
    )
    assert levels["spellings"]["score"] == theirs["results"]["spellings"]["exact_match,none"]
    assert levels["both"]["num_examples"] == 13 and levels["both"]["chance"] == pytest.approx(1 / 3)
    assert levels["both"]["score"] == pytest.approx(theirs["results"]["both"]["acc,none"], abs=1e-12)
    assert len(items["item"]) == len(set(zip(items["level"].tolist(), items["item"].tolist(), strict=True)))
    assert set(items["group"][items["level"] == 5].tolist()) == {"choices", "choices_few"}


def test_items_hold_what_flips_need(run: tuple, theirs: dict[str, Any]):
    _, items = run
    samples = [*theirs["samples"]["choices"], *theirs["samples"]["choices_few"]]
    wanted = [answer[0][0] for sample in samples for answer in sample["resps"]]
    np.testing.assert_allclose(items["level5_option_log_likelihood"], wanted, rtol=1e-5, atol=1e-4)
    assert items["level5_option_count"].tolist() == [3] * 13
    assert items["level5_gold"].tolist() == [sample["target"] for sample in samples]
    right = items["level5_predicted"] == items["level5_gold"]
    assert right.astype(float).tolist() == [sample["acc"] for sample in samples] == items["level5_acc"].tolist()
    normalized = items["level5_predicted_norm"] == items["level5_gold"]  # whichever of the two is the score
    assert normalized.astype(float).tolist() == [sample["acc_norm"] for sample in samples]
    answers = [sample["filtered_resps"][0] for sample in theirs["samples"]["answers"] if sample["filter"] == "first"]
    assert items["level2_predicted"].tolist() == list(map(str, answers))


SCORES_ITSELF = """
import math

def scored(doc, results):
    likelihoods = [likelihood for likelihood, _ in results]
    weights = [math.exp(likelihood) for likelihood in likelihoods]
    rank = sorted(likelihoods, reverse=True).index(likelihoods[doc["gold"]]) + 1
    return {"acc": sum(weights[:2]) / sum(weights), "mrr": 1 / rank}
"""


@pytest.mark.parametrize(("metric", "chance"), [("acc", 2 / 3), ("mrr", (1 + 1 / 2 + 1 / 3) / 3)])
def test_chance_of_a_task_that_scores_itself_is_by_its_own_function(
    metric: str, chance: float, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """A share of probability, of two of the three options, and a reciprocal rank: an argmax would be right by 1/3."""
    names = [{"metric": name, **MEAN} for name in ("acc", "mrr")]
    own = write_task_with(tmp_path / "own", SCORES_ITSELF, process_results="!function utils.scored", metric_list=names)
    asked = [*words(model, own, "mine"), "--lm_eval_metric", metric, "--output_dir", str(tmp_path / "run")]
    assert script.main(asked) == 0
    (level,) = json.loads((tmp_path / "run/all_results.json").read_text())["levels"]
    assert level["metric"] == metric and level["chance"] == pytest.approx(chance)
    assert not {"level0_predicted", "level0_predicted_norm"} & set(np.load(tmp_path / "run/items.npz"))
    arguments = json.loads((tmp_path / "run/args.json").read_text())
    assert arguments["arguments"].pop("lm_eval_arithmetic") == 2
    (tmp_path / "run/args.json").write_text(json.dumps(arguments))  # as a run made before
    with pytest.raises(SystemExit):
        script.main(asked)
    assert "lm_eval_arithmetic: 2 here, 1 there" in capsys.readouterr().err


@pytest.mark.parametrize(("task", "number"), [("answers", 3), ("letters", None)])
def test_answers_that_stop_texts_end_have_a_number_of_their_own(
    task, number, model: Path, folder: Path, tmp_path: Path
):
    """Runs of before, in which a stop text that is a special token ended no answer, are other runs."""
    assert script.main([*words(model, folder, task), "--output_dir", str(tmp_path / "run")]) == 0
    recorded = json.loads((tmp_path / "run/args.json").read_text())["arguments"]
    assert recorded.get("lm_eval_arithmetic") == number


@pytest.mark.parametrize("choices", [["A", "B"], ["NO", "HI"]])  # which stand in the alphabet too
def test_chance_is_the_most_frequent_answer_where_texts_but_not_letters_are_the_same(
    choices: list[str], model: Path, tmp_path: Path
):
    target = "{{[0, 1, 1][gold]}}"  # of three options in the rows, of which two are now one
    own = write_task_with(tmp_path / "own", "", doc_to_choice=choices, doc_to_target=target)
    assert script.main([*words(model, own, "mine"), "--output_dir", str(tmp_path / "run")]) == 0
    (level,) = json.loads((tmp_path / "run/all_results.json").read_text())["levels"]
    golds = np.load(tmp_path / "run/items.npz")["level0_gold"]
    often = max(np.mean(golds == 0), np.mean(golds == 1))
    assert often > 0.5 and level["chance"] == (0.5 if choices == ["A", "B"] else often)


def write_task_with(folder: Path, functions: str, **task: Any) -> Path:
    """A folder with a task "mine" of choices, which differs so, and the functions that it names."""
    folder.mkdir(exist_ok=True)
    write_rows(folder / "test.jsonl", rows(8, 0))
    (folder / "utils.py").write_text(functions)
    bare = {**TASKS["choices"], "fewshot_split": None}
    write_task(folder, "mine", {**bare, **task}, {"test": folder / "test.jsonl"})
    return folder


def test_a_metric_beyond_zero_and_one_is_no_score(message: Message, model: Path, tmp_path: Path):
    """Before the model loads by what a document's texts or ranked options show, else by the model's own answers."""
    functions = """
def written(doc, results):
    return {"percent": 100.0 if results[0] in doc["choices"] else 50.0, "right": float(results[0] == doc["word"])}

def margin(doc, results):
    return {"margin": results[0][0] - results[1][0]}

def likelihood(doc, results):
    return {"likelihood": results[0][0]}
"""
    asked = {
        "output_type": "generate_until", "doc_to_choice": None, "doc_to_target": " ",
        "process_results": "!function utils.written", "generation_kwargs": TASKS["answers"]["generation_kwargs"],
        "metric_list": [{"metric": name, **MEAN} for name in ("percent", "right")],
    }  # fmt: skip
    own = write_task_with(tmp_path / "written", functions, **asked)
    told = message(own, "mine")
    assert "--lm_eval_tasks mine: percent is 50 for an item, and a score is in [0, 1]; --lm_eval_metric may be" in told
    assert told.endswith("may be right")
    run = [*words(model, own, "mine"), "--lm_eval_metric", "right", "--output_dir", str(tmp_path / "right")]
    assert script.main(run) == 0
    (level,) = json.loads((tmp_path / "right/all_results.json").read_text())["levels"]
    assert set(level["metrics"]) == {"right", "percent"}
    assert "level0_percent" not in np.load(tmp_path / "right/items.npz")
    alone = {"process_results": "!function utils.margin", "metric_list": [{"metric": "margin", **MEAN}]}
    told = message(write_task_with(tmp_path / "margin", functions, **alone), "mine")
    assert told.endswith("margin is -2 for an item, and a score is in [0, 1]; none of its metrics is one")
    alone = {
        "output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": " {{word}}",
        "process_results": "!function utils.likelihood", "metric_list": [{"metric": "likelihood", **MEAN}],
    }  # fmt: skip
    late = write_task_with(tmp_path / "likelihood", functions, **alone)
    assert script.main([*words(model, late, "mine"), "--output_dir", str(tmp_path / "late")]) == 1
    assert not (tmp_path / "late/all_results.json").exists()


def test_a_repeated_document_is_no_independent_item(model: Path, tmp_path: Path):
    own = write_task_with(tmp_path / "own", "")
    write_rows(own / "test.jsonl", [*rows(8, 0), *rows(2, 0)])
    assert script.main([*words(model, own, "mine"), "--output_dir", str(tmp_path / "run")]) == 0
    (level,) = json.loads((tmp_path / "run/all_results.json").read_text())["levels"]
    items = np.load(tmp_path / "run/items.npz")
    assert level["facts"]["repeated_items"] == 2 and len(set(items["item"].tolist())) == 10
    assert items["group"][8:].tolist() == items["group"][:2].tolist() and len(set(items["group"].tolist())) == 8


def test_long_prompts_were_cut_in_these_tests(run: tuple):
    """So that the equality above includes lm-eval's way of cutting."""
    result, _ = run
    cut = {level["level"]: level["facts"]["shortened"] for level in result["levels"]}
    assert cut["answers"] > 0 and cut["letters"] > 0


def test_a_metric_a_sample_examples_and_a_chat_template_are_obeyed(model: Path, folder: Path, tmp_path: Path):
    asked = [*words(model, folder, "choices"), "--lm_eval_metric", "acc_norm", "--num_fewshot", "1", "--max_items", "5"]
    assert script.main([*asked, "--output_dir", str(tmp_path / "one")]) == 0
    result = json.loads((tmp_path / "one/all_results.json").read_text())
    (level,) = result["levels"]
    reference = evaluated(HFLM, model, folder, ["choices"], num_fewshot=1)["samples"]["choices"]
    items = np.load(tmp_path / "one/items.npz")
    assert level["metric"] == "acc_norm" and level["num_examples"] == 5 and level["facts"]["num_fewshot"] == 1
    likelihoods = {tuple(np.round(row, 3)) for row in items["level0_option_log_likelihood"].reshape(-1, 3)}
    assert likelihoods <= {tuple(round(own[0][0], 3) for own in sample["resps"]) for sample in reference}
    assert result["task"] == "choices"


TURNS = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


def with_template(model: Path, folder: Path, template: str) -> Path:
    """A copy of the model with this chat template."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_values_that_the_template_does_not_read_are_refused(
    message: Message, model: Path, folder: Path, tmp_path: Path
):
    chatty = with_template(model, tmp_path / "chatty", TURNS)
    asked = ("--model_name_or_path", str(chatty), "--chat_template", "--chat_template_kwargs")
    assert "does not read 'thinking'" in message(folder, "choices", options=(*asked, '{"thinking": false}'))
    assert "tokenize is an argument of apply" in message(folder, "choices", options=(*asked, '{"tokenize": true}'))


def test_a_run_in_a_template_with_todays_date_is_the_same_tomorrow(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """And no run of an earlier version, which had the date of its day."""
    chatty = with_template(model, tmp_path / "chatty", "{{ strftime_now('%A, %d %b %Y') }}" + TURNS)
    asked = [*words(chatty, folder, "choices"), "--chat_template", "--output_dir"]
    for day in (1, 2):
        now = type("Day", (datetime,), {"now": classmethod(lambda cls, day=day: datetime(2025, 11, day))})
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", now)
        assert script.main([*asked, str(tmp_path / str(day))]) == 0
    first, second = (np.load(tmp_path / f"{day}/items.npz")["level0_option_log_likelihood"] for day in (1, 2))
    assert first.tolist() == second.tolist()
    record = tmp_path / "1/args.json"
    written = json.loads(record.read_text())
    assert written["arguments"].pop("chat_date") == "2024-07-26"
    record.write_text(json.dumps(written))
    with pytest.raises(SystemExit):
        script.main([*asked, str(tmp_path / "1")])
    assert "chat_date: '2024-07-26' here, None there" in capsys.readouterr().err


def test_the_chat_template_is_lm_evals(model: Path, folder: Path, tmp_path: Path):
    chatty = with_template(model, tmp_path / "chatty", TURNS)
    reference = evaluated(HFLM, chatty, folder, ["choices"], num_fewshot=1, apply_chat_template=True)
    asked = [*words(chatty, folder, "choices"), "--num_fewshot", "1", "--chat_template"]
    assert script.main([*asked, "--output_dir", str(tmp_path / "run")]) == 0
    wanted = [answer[0][0] for sample in reference["samples"]["choices"] for answer in sample["resps"]]
    assert "[user]Question:" in reference["samples"]["choices"][0]["arguments"][0][0]
    found = np.load(tmp_path / "run/items.npz")["level0_option_log_likelihood"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


def test_runs_are_told_apart_by_content_not_by_place(
    model: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    moved, changed = write_tasks(tmp_path / "moved"), write_tasks(tmp_path / "changed")
    write_rows(changed / "test.jsonl", rows(8, 9))
    output = ["--output_dir", str(tmp_path / "run")]
    assert script.main([*words(model, folder, "letters"), *output]) == 0
    caplog.set_level(logging.INFO)
    assert script.main([*words(model, moved, "letters"), *output]) == 0
    assert "1 already complete" in caplog.text
    with pytest.raises(SystemExit):
        script.main([*words(model, changed, "letters"), *output])
    arguments = json.loads((tmp_path / "run/args.json").read_text())
    assert str(tmp_path) not in json.dumps(arguments["arguments"])


class Asked:
    """A stand-in for a task."""

    OUTPUT_TYPE, VERSION = "loglikelihood", 1

    def __init__(self, version: int, config: str, *request: Any) -> None:
        self.VERSION, self.config = version, SimpleNamespace(to_dict=lambda keep_callable: {"doc_to_text": config})
        self.instances = [SimpleNamespace(**dict(zip(("request_type", "args", "doc"), request, strict=True)))]


def test_all_that_is_asked_tells_runs_apart():
    """Prompts, which hold few-shot examples, and documents, which hold what is right, each by itself."""
    same = (1, "Q:", "loglikelihood", ("Q: 1", " a"), {"gold": 0})
    others = [(2, *same[1:]), (1, "A:", *same[2:]), (*same[:2], "rolling", *same[3:]),
              (*same[:3], ("Q: 2", " a"), same[4]), (*same[:4], {"gold": 1})]  # fmt: skip
    levels = [lm_eval_tasks.TaskLevel("t", (Asked(*own),)) for own in (same, same, *others)]
    levels += [levels[0]._replace(name="u"), levels[0]._replace(weighted=("acc",))]
    hashes = [lm_eval_tasks.content([level])["data_content_sha256"] for level in levels]
    assert hashes[0] == hashes[1] and len(set(hashes)) == len(levels) - 1


def test_an_answer_is_as_long_as_the_model_says_where_the_task_does_not():
    assert lm_eval_tasks.stop_of({"until": ["\n"]}, None, 7) == Stop(("\n",), 7)
    assert lm_eval_tasks.stop_of({"until": ["\n"], "max_gen_toks": 3}, "</s>", 7) == Stop(("\n", "</s>"), 3)


def test_a_run_is_another_where_what_judges_its_answers_was_edited(message: Message, model: Path, tmp_path: Path):
    """Of a function of the user's all of its file counts; lm-eval's own are told by its version."""
    functions = "RIGHT = 1.0\n\ndef scored(doc, results):\n    return {'acc': RIGHT}\n"
    acc = [{"metric": "acc", **MEAN}]
    own = write_task_with(tmp_path / "own", functions, process_results="!function utils.scored", metric_list=acc)
    output = ("--output_dir", str(tmp_path / "run"))
    assert script.main([*words(model, own, "mine"), *output]) == 0
    (own / "utils.py").write_text(functions.replace("1.0", "0.5"))
    assert "data_content_sha256" in message(own, "mine", options=output)
    theirs = lm_eval.api.metrics.mean
    assert lm_eval_tasks._as_text(theirs) == inspect.getsource(theirs)


@pytest.fixture
def message(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Message:
    """What a refused command says, in its last line."""

    def refused(folder: Path, *asked: str, options: tuple[str, ...] = ()) -> str:
        lm_eval_tasks.load_levels.cache_clear()
        with pytest.raises(SystemExit) as ended:
            script.main([*words(model, folder, *asked), "--output_dir", str(tmp_path / "refused"), *options])
        assert ended.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    return refused


def test_what_cannot_be_measured_is_refused_in_one_line(message: Message, folder: Path, tmp_path: Path):
    assert "no task of this name; near ones are choices" in message(folder, "choicez")
    assert "weights this group's tasks alike" in message(folder, "alike")
    assert "choices is among them twice" in message(folder, "both", "choices")
    told = message(folder, "answers", options=("--lm_eval_metric", "acc"))
    assert "answers has exact_match,first, exact_match,whole" in told
    odd = tmp_path / "odd"
    odd.mkdir()
    write_rows(odd / "test.jsonl", [*rows(3, 0), {**rows(1, 5)[0], "gold": -1, "word": ""}])
    data = {"test": odd / "test.jsonl"}
    bare = {**TASKS["choices"], "fewshot_split": None}
    write_task(odd, "no_gold", bare, data)
    write_task(odd, "no_word", TASKS["last_word"], data)
    sampled = {**TASKS["answers"], "fewshot_split": None, "num_fewshot": 0}
    write_task(odd, "draws", {**sampled, "generation_kwargs": {"do_sample": True, "temperature": 0.7}}, data)
    write_task(odd, "beams", {**sampled, "generation_kwargs": {"until": ["\n"], "num_beams": 4}}, data)
    write_task(odd, "of_all", {**bare, "metric_list": [{"metric": "mcc"}], "test_split": "test"}, data)
    write_task(odd, "no_field", {**bare, "doc_to_text": "{{nothing}}"}, data)
    write_task(odd, "no_file", bare, {"test": odd / "gone.jsonl"})
    assert "item 4 of its data has no gold answer: -1 is none of its 3 choices" in message(odd, "no_gold")
    assert "do_sample True with temperature 0.7 draws at random; answers here are greedy" in message(odd, "draws")
    assert "num_beams 4 is more than greedy generation" in message(odd, "beams")
    assert "no_field cannot be read: UndefinedError: 'nothing' is undefined" in message(odd, "no_field")
    assert "no_file cannot be read: FileNotFoundError" in message(odd, "no_file")
    write_rows(odd / "test.jsonl", rows(3, 0))
    assert "its metrics (mcc) are of all items together" in message(odd, "of_all")


def test_flips_are_shown_with_their_questions(
    model: Path, folder: Path, tmp_path: Path, load_script: Callable[[str], Any], capsys: pytest.CaptureFixture
):
    asked = [*words(model, folder, "answers", "letters"), "--compression", "dense", "magnitude", "--sparsity", "0.8"]
    assert script.main([*asked, "--difficulty", "dense", "--output_dir", str(tmp_path / "runs/{compression}")]) == 0
    result = json.loads((tmp_path / "runs/dense/all_results.json").read_text())
    assert [(level["difficulty"], level["facts"]["harder_by_dense"]) for level in result["levels"]] == [(None, 1)] * 2
    capsys.readouterr()
    shown = ["--results_dir", str(tmp_path / "runs"), "--direction", "changed", "--include_path", str(folder)]
    load_script("show_flips").main(shown)
    text = capsys.readouterr().out
    assert "Q: " in text and "exact_match,first" in text and "Without texts" not in text


def test_what_the_engine_does_not_compute_is_lm_evals_own(model: Path, folder: Path, caplog: pytest.LogCaptureFixture):
    sampling = {"until": ["\n"], "num_beams": 2, "max_gen_toks": 6}
    found = {}
    for kind in (HFLM, EngineLM):
        found[kind] = evaluated(kind, model, folder, ["answers"], gen_kwargs=sampling)["samples"]["answers"]
    assert [own["resps"] for own in found[HFLM]] == [own["resps"] for own in found[EngineLM]]
    assert "num_beams=2 is more than greedy generation" in caplog.text.replace("num_beams 2", "num_beams=2")
    plain = EngineLM(pretrained=str(model), device="cpu", dtype="float32", plain=True)
    assert plain.loglikelihood([]) == []
