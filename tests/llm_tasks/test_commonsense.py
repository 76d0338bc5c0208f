"""Setting 5 and its data sets: prompts written out by hand, labels in all forms, what is refused."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from setting_values import values_of

from llm_tasks.levels import Prompt, continued
from llm_tasks.settings import human_gap
from llm_tasks.tasks.commonsense import TASKS, cloze_prompt, letter_prompt, load_task, sources, without_markup

ROWS = {
    "piqa": {"goal": "Dry a cup", "sol1": "use a towel", "sol2": "use a wet towel ", "label": 0},
    "hellaswag": {
        "activity_label": "Baking", "ctx_a": "A man opens the oven.", "ctx_b": "he McNair", "label": "2",
        "endings": ["sings.", "[substeps] Rest  now.", "takes the cake.", "Ends [title] Well"],
    },
    "openbookqa": {
        "question_stem": "Ice is", "choices": {"text": ["hot", "cold", "wet", "dry"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    "winogrande": {
        "sentence": "Ann thanked Eve since _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2",
    },
    "commonsense_qa": {
        "question": " Where do fish live? ",
        "choices": {"label": list("ABCDE"), "text": ["sea", "tree", "car", "bed", "sun"]}, "answerKey": "A",
    },
    "boolq": {"question": "is ice cold", "passage": "Ice is frozen water.", "answer": True},
}  # fmt: skip

# Context, continuations and right one, as lm-evaluation-harness 0.4.13 has them (CommonsenseQA, WinoGrande: ours).
CLOZE = {
    "piqa": ("Question: Dry a cup\nAnswer:", (" use a towel", " use a wet towel "), 0),
    "hellaswag": (
        "Baking: A man opens the oven. He mcnair", (" sings.", "  Rest now.", " takes the cake.", " Ends. Well"), 2,
    ),
    "openbookqa": ("Ice is", (" hot", " cold", " wet", " dry"), 1),
    "winogrande": ("Ann thanked Eve since", (" Ann had helped.", " Eve had helped."), 1),
    "commonsense_qa": ("Question: Where do fish live?\nAnswer:", (" sea", " tree", " car", " bed", " sun"), 0),
    "boolq": ("Ice is frozen water.\nQuestion: is ice cold?\nAnswer:", (" no", " yes"), 1),
}  # fmt: skip

LETTERED = {
    "piqa": "Question: Dry a cup\nA. use a towel\nB. use a wet towel\nAnswer:",
    "hellaswag": "Question: Baking: A man opens the oven. He mcnair\nA. sings.\nB. Rest now.\nC. takes the cake.\n"
    "D. Ends. Well\nAnswer:",
    "openbookqa": "Question: Ice is\nA. hot\nB. cold\nC. wet\nD. dry\nAnswer:",
    "winogrande": "Question: Ann thanked Eve since _ had helped.\nA. Ann\nB. Eve\nAnswer:",
    "commonsense_qa": "Question: Where do fish live?\nA. sea\nB. tree\nC. car\nD. bed\nE. sun\nAnswer:",
    "boolq": "Ice is frozen water.\nQuestion: is ice cold?\nA. no\nB. yes\nAnswer:",
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows where load_task looks for a task's; returns the --data_dir."""

    def write_rows(task: str, *rows: dict[str, Any], split: str | None = None) -> Path:
        (source,) = sources(task, [split] if split else [])
        path = tmp_path / "data" / source.folder / f"{source.split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return tmp_path / "data"

    return write_rows


def options_of(data_dir: Path | None, *words: str, **shared: object) -> human_gap.Values:
    return values_of(human_gap.SETTING, *words, data_dir=data_dir, **shared)


def text_of(prompt: Prompt) -> str:
    return prompt.header + "".join(prompt.shots) + prompt.question


@pytest.mark.parametrize("task", TASKS)
def test_prompts_by_hand(task: str, write: Write):
    (question,) = load_task(task, write(task, ROWS[task]))
    context, options, gold = CLOZE[task]
    cloze, letter = cloze_prompt(question), letter_prompt(question)
    assert (text_of(cloze), cloze.options, cloze.gold) == (context, options, gold)
    assert text_of(letter) == LETTERED[task]
    assert letter.options == (" A", " B", " C", " D", " E")[: len(options)] and letter.gold == gold
    assert cloze.item == letter.item == question.item and len(question.item) == 16


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  plain \n", "plain"),
        ("Make tea [title] Boil water", "Make tea. Boil water"),  # ".  " is one double blank, made a single one
        ("[header] Make tea [title] Boil [step] water [substeps] Wait", " Make tea. Boil water Wait"),
        ("[header] Make tea", " Make tea"),
        ("a [one] b [two]", "a b "),
        ("a   b", "a  b"),  # three blanks: a pair and one
        ("no ] bracket [ here", "no ] bracket [ here"),
    ],
)
def test_hellaswag_cleaning(raw: str, clean: str):
    assert without_markup(raw) == clean


def test_hellaswag_context_may_end_in_a_blank_which_moves_to_the_endings(write: Write):
    row = {**ROWS["hellaswag"], "ctx_a": "He rests [step]", "ctx_b": "", "endings": ["a", "b"], "label": 1}
    (question,) = load_task("hellaswag", write("hellaswag", row))
    assert (question.context, question.continuations, question.gold) == ("Baking: He rests", ("  a", "  b"), 1)


@pytest.mark.parametrize(
    ("task", "changes", "gold"),
    [
        ("piqa", {"label": "1"}, 1),
        ("hellaswag", {"label": 3}, 3),
        ("winogrande", {"answer": 1}, 0),
        ("boolq", {"answer": False}, 0),
        ("openbookqa", {"answerKey": " D "}, 3),
        ("openbookqa", {"answerKey": "3"}, 2),
        ("openbookqa", {"answerKey": 3}, 2),
        ("openbookqa", {"answerKey": "C", "choices": {"text": list("wxyz"), "label": list("1234")}}, 2),
        ("openbookqa", {"answerKey": "4", "choices": {"text": list("wxyz"), "label": list("1234")}}, 3),
        ("openbookqa", {"answerKey": "B", "choices": {"text": list("xy"), "label": list("BA")}}, 0),
        ("commonsense_qa", {"choices": [{"text": "a", "label": "A"}, {"label": "B", "text": "b"}]}, 0),
    ],
)
def test_labels_in_all_forms(task: str, changes: dict[str, Any], gold: int, write: Write):
    (question,) = load_task(task, write(task, {**ROWS[task], **changes}))
    assert question.gold == gold


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("piqa", {"label": -1}, r"validation.jsonl, line 2: 'label' is -1: the split 'validation' must have labels"),
        ("hellaswag", {"label": ""}, "'label' is '': the split 'validation' must have labels"),
        ("openbookqa", {"answerKey": None}, r"test.jsonl, line 2: 'answerKey' is None: the split 'test' must have"),
        ("piqa", {"label": 2}, "line 2: 'label' is 2; allowed: 0, 1"),
        ("piqa", {"label": True}, "'label' is True; allowed: 0, 1"),
        ("piqa", {"sol2": " "}, "line 2: 'sol2' is empty"),
        ("piqa", {"goal": 7}, "'goal' is no text"),
        ("hellaswag", {"label": "4"}, "'label' is '4'; allowed: 0, 1, 2, 3"),
        ("hellaswag", {"endings": "abcd"}, "'endings' must be a list of 2 to 26 texts"),
        ("hellaswag", {"endings": ["a", "[step]"]}, "'endings' is empty"),
        ("hellaswag", {"ctx_b": None}, "'ctx_b' is no text"),
        ("openbookqa", {"answerKey": "E"}, "'answerKey' is 'E'; allowed: A, B, C, D"),
        ("openbookqa", {"choices": {"text": ["a", "b"], "label": ["A"]}}, "'choices.label' must be a list of 2"),
        ("openbookqa", {"choices": {"text": list("abc"), "label": list("AB")}}, "3 texts and 2 labels"),
        ("openbookqa", {"choices": ["a", "b"]}, "'choices' must hold 'text' and 'label'"),
        ("openbookqa", {"choices": {"text": ["a", "b"]}}, "'choices' must hold 'text' and 'label'"),
        ("commonsense_qa", {"choices": [{"text": "a", "label": "A"}, {"text": "b"}]}, "'choices.label' is no text"),
        ("winogrande", {"sentence": "No gap."}, "'sentence' has no gap"),
        ("winogrande", {"answer": "0"}, "'answer' is '0'; allowed: 1, 2"),
        ("boolq", {"answer": "yes"}, "'answer' is 'yes'; allowed: False, True"),
    ],
)
def test_bad_rows_are_named(task: str, changes: dict[str, Any], message: str, write: Write):
    with pytest.raises(ValueError, match=message):
        load_task(task, write(task, ROWS[task], {**ROWS[task], **changes}))


def test_a_missing_field_is_named(write: Write):
    row = {field: value for field, value in ROWS["piqa"].items() if field != "sol1"}
    with pytest.raises(ValueError, match=r"line 1 lacks the field 'sol1'; it has goal, sol2, label"):
        load_task("piqa", write("piqa", row))


def test_identities_follow_content_and_repeated_items_are_told_apart(write: Write):
    other = {**ROWS["piqa"], "goal": "Dry a plate"}
    first = [question.item for question in load_task("piqa", write("piqa", ROWS["piqa"], other, ROWS["piqa"]))]
    assert len(set(first)) == 3 and first[2] == f"{first[0]}-2"
    again = [question.item for question in load_task("piqa", write("piqa", other, {**ROWS["piqa"], "label": 1}))]
    assert again == [first[1], first[0]]


def test_a_repeated_row_is_no_independent_item(write: Write):
    other = {**ROWS["piqa"], "goal": "Dry a plate"}
    args = options_of(write("piqa", ROWS["piqa"], other, ROWS["piqa"]), "--tasks", "piqa")
    (level,) = human_gap.build(human_gap.load(args), args, 0, None)
    groups = [prompt.group for prompt in level.prompts]
    assert groups[0] == groups[2] != groups[1] and level.facts == {"repeated_items": 1}


def test_questions_on_one_passage_are_a_group(write: Write):
    rows = [{**ROWS["boolq"], "question": "is ice hot"}, ROWS["boolq"], {**ROWS["boolq"], "passage": "Ice melts."}]
    questions = load_task("boolq", write("boolq", *rows))
    groups = [cloze_prompt(question).group for question in questions]
    assert groups[0] == groups[1] != groups[2]
    assert load_task("boolq", write("boolq", rows[2]))[0].item == questions[2].item  # no repetition of the second
    assert human_gap.task_level("boolq", questions, "cloze").facts == {}


def test_levels_of_setting_5(write: Write):
    for task in ("openbookqa", "piqa"):
        data_dir = write(task, *({**ROWS[task], FIRST_FIELD[task]: f"Item {number} is"} for number in range(6)))
    args = options_of(data_dir, "--tasks", "openbookqa", "piqa", "openbookqa", max_items=4)
    items = human_gap.load(args)
    levels = human_gap.build(items, args, 0, None)
    assert [level[:4] for level in levels] == [
        ("OpenBookQA", None, "openbookqa", "cloze"), ("PIQA", None, "piqa", "cloze")
    ]  # fmt: skip
    assert [level.human for level in levels] == [0.92, 0.95]
    assert [len(level.prompts) for level in levels] == [4, 4]
    assert all(prompt.group == prompt.item for level in levels for prompt in level.prompts)
    assert [path.name for path in human_gap.files(args)] == ["test.jsonl", "validation.jsonl"]

    for mode in ("letter", "generate"):
        again = human_gap.build(items, replace(args, answer_mode=mode), 1, None)
        assert [level.reader for level in again] == [mode, mode]
        assert again[1].prompts[0].options == (" A", " B")
        assert [prompt.item for prompt in again[1].prompts] == [prompt.item for prompt in levels[1].prompts]


FIRST_FIELD = {"piqa": "goal", "openbookqa": "question_stem"}


def test_items_of_several_splits(write: Write):
    stems = {"test": ["Ice is", "Rain is"], "validation": ["Snow is", "Ice is"]}
    for split, texts in stems.items():
        rows = ({**ROWS["openbookqa"], "question_stem": text} for text in texts)
        data_dir = write("openbookqa", *rows, split=split)
    write("piqa", ROWS["piqa"])
    args = options_of(data_dir, "--tasks", "openbookqa", "piqa", "--eval_split", "openbookqa=validation+test")
    items = human_gap.load(args)
    assert [question.question for question in items["openbookqa"]] == ["Snow is", "Ice is", "Ice is", "Rain is"]
    assert len({question.item for question in items["openbookqa"]}) == 4
    assert items["piqa"] == load_task("piqa", data_dir)
    files = [str(path.relative_to(data_dir)) for path in human_gap.files(args)]
    assert files == ["openbookqa/validation.jsonl", "openbookqa/test.jsonl", "piqa/validation.jsonl"]
    assert [source.hub_split for source in sources("openbookqa", ["validation", "test"])] == ["validation", "test"]

    write("openbookqa", {**ROWS["openbookqa"], "answerKey": ""}, split="validation")
    with pytest.raises(ValueError, match=r"validation.jsonl, line 1: 'answerKey' is '': the split 'validation' must"):
        human_gap.load(args)


def test_duplicate_options_are_counted(write: Write):
    double = {**ROWS["piqa"], "sol2": "use a towel"}
    args = options_of(write("piqa", ROWS["piqa"], double), "--tasks", "piqa")
    (level,) = human_gap.build(human_gap.load(args), args, 0, None)
    assert level.facts == {"duplicate_options": 1} and len(level.prompts) == 2


def test_default_tasks_and_human_scores_are_the_papers():
    """Table 3 and appendix B."""
    assert options_of(None).tasks == ["piqa", "hellaswag", "openbookqa"]
    hub = [source.hub_id for source in human_gap.files(options_of(None))]
    assert hub == ["baber/piqa", "Rowan/hellaswag", "allenai/openbookqa"]
    printed = {"piqa": 95.0, "hellaswag": 95.6, "openbookqa": 92.0, "winogrande": 94.0, "commonsense_qa": 89.0}
    assert {task: TASKS[task].human * 100 for task in printed} == pytest.approx(printed)


def test_the_items_are_those_that_lm_evaluation_harness_scores():
    """Its task files; BoolQ's accuracy of people: Clark et al. 2019."""
    read = {name: task.source for name, task in TASKS.items()}
    assert {name: (own.hub_id, own.hub_config, own.hub_split) for name, own in read.items()}.items() >= {
        "piqa": ("baber/piqa", None, "validation"), "hellaswag": ("Rowan/hellaswag", None, "validation"),
        "openbookqa": ("allenai/openbookqa", "main", "test"), "boolq": ("google/boolq", None, "validation"),
        "winogrande": ("allenai/winogrande", "winogrande_xl", "validation"),
        "commonsense_qa": ("tau/commonsense_qa", None, "validation"),
    }.items()  # fmt: skip
    assert all(own.split == own.hub_split for own in read.values())
    assert TASKS["boolq"].human == 0.90


def test_an_unknown_task_is_refused():
    with pytest.raises(argparse.ArgumentError, match="invalid choice: 'arc'"):
        options_of(None, "--tasks", "arc")


def test_blanks_at_the_end_of_a_context_move_to_the_options():
    assert continued("Ice is  ", ["hot"]) == ("Ice is", ("   hot",))
