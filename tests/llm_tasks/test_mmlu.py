"""MMLU and settings 2 and 4: prompts word for word, nested and balanced options, nested examples, what is refused."""

import argparse
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from setting_values import build, values_of

from llm_tasks import setting3_context_length, setting5_human_gap
from llm_tasks.levels import LETTERS, Level, item_id, sample
from llm_tasks.settings import SETTINGS, factoid_vs_mcq, k_shot, option_count
from llm_tasks.tasks import mmlu
from llm_tasks.tasks.mmlu import Question, refers_to_others

MODULES = {2: option_count, 4: k_shot, 6: factoid_vs_mcq}
SUM = {"question": " What is 1 + 1?\n", "subject": "small_sums", "choices": ["1", "2", "None", " 4"], "answer": 1}
WORTH = {"question": "2 + 2 =", "subject": "small_sums", "choices": ["4", "3", "5", "6"], "answer": "A"}


def make(number: int, subject: str = "small_sums", num_choices: int = 4) -> Question:
    choices = tuple(f"{number}.{place}" for place in range(num_choices))
    answer = number * 7 % num_choices
    return Question(f"Question {number}?", choices, answer, subject, item_id(subject, str(number)))


def make_all(count: int = 41) -> list[Question]:
    """Questions of two subjects, mixed, no number of them a multiple of 2, 3 or 4."""
    return [make(number, "small_sums" if number % 3 else "large_sums") for number in range(count)]


def row_of(question: Question) -> dict:
    return {name: getattr(question, name) for name in mmlu.FIELDS}


def write(data_dir: Path, split: str, rows: list[dict]) -> Path:
    path = data_dir / "mmlu" / f"{split}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    write(tmp_path, "test", [row_of(question) for question in make_all()])
    write(tmp_path, "dev", [row_of(make(number, subject)) for subject in ("large_sums", "small_sums", "no_sums")
                            for number in range(100, 105)])  # fmt: skip
    return tmp_path


def text_of(prompt) -> str:
    return prompt.header + "".join(prompt.shots) + prompt.question


def by_item(level: Level) -> dict:
    return {prompt.item: prompt for prompt in level.prompts}


def test_questions_of_a_file(tmp_path: Path):
    write(tmp_path, "test", [SUM, WORTH, SUM])
    first, second, repeated = mmlu.load(tmp_path, "test")
    assert first == Question(
        " What is 1 + 1?\n", ("1", "2", "None", " 4"), 1, "small_sums",
        item_id("small_sums", " What is 1 + 1?\n", "1", "2", "None", " 4"),
    )  # fmt: skip
    assert second.answer == 0
    assert repeated == first._replace(item=repeated.item, repeats=first.item) and repeated.item != first.item


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 4}, "'answer' 4 is not among the 4 options; it must be a number from 0 to 3 or a letter from A to"),
        ({"answer": -1}, "'answer' -1 is not among the 4 options"),
        ({"answer": "E"}, "'answer' 'E' is not among the 4 options"),
        ({"answer": ""}, "'answer' '' is not among the 4 options"),
        ({"answer": "AB"}, "'answer' 'AB' is not among the 4 options"),
        ({"answer": None}, "'answer' None is not among"),
        ({"answer": True}, "'answer' True is not among"),
        ({"answer": 1.0}, r"'answer' 1\.0 is not among"),
        ({"answer": 2, "choices": ["a", "b"]}, "'answer' 2 is not among the 2 options; .* from 0 to 1 .* A to B"),
        ({"choices": ["1"]}, "'choices' is no list of 2 to 26 options"),
        ({"choices": "1234"}, "'choices' is no list of 2 to 26 options"),
        ({"choices": ["1", "2", 3, "4"]}, "'choices' is no text but int"),
        ({"choices": ["1", "2", "", "4"]}, "'choices' is empty"),
        ({"question": " "}, "'question' is empty"),
        ({"subject": None}, "'subject' is no text but NoneType"),
    ],
)
def test_bad_rows_name_file_line_and_field(change: dict, message: str, tmp_path: Path):
    write(tmp_path, "test", [SUM, {**SUM, **change}])
    with pytest.raises(ValueError, match=rf"mmlu/test\.jsonl, line 2: {message}"):
        mmlu.load(tmp_path, "test")


@pytest.mark.parametrize("field", mmlu.FIELDS)
def test_missing_fields_are_named(field: str, tmp_path: Path):
    there = [name for name in mmlu.FIELDS if name != field]
    write(tmp_path, "test", [SUM, {name: SUM[name] for name in there}])
    message = rf"test\.jsonl, line 2 lacks the field '{field}'; it has {', '.join(there)}$"
    with pytest.raises(ValueError, match=message):
        mmlu.load(tmp_path, "test")


@pytest.mark.parametrize("reader", ["letter", "generate"])
def test_letter_prompts_are_those_of_lm_evaluation_harness(reader: str, tmp_path: Path):
    write(tmp_path, "test", [SUM])
    write(tmp_path, "dev", [WORTH, {**WORTH, "question": "3 + 3 =", "answer": "D"}])
    (prompt,) = mmlu.prompts(mmlu.load(tmp_path, "test"), mmlu.load(tmp_path, "dev"), reader)
    assert text_of(prompt) == (
        "The following are multiple choice questions (with answers) about small sums.\n\n"
        "2 + 2 =\nA. 4\nB. 3\nC. 5\nD. 6\nAnswer: A\n\n"
        "3 + 3 =\nA. 4\nB. 3\nC. 5\nD. 6\nAnswer: D\n\n"
        "What is 1 + 1?\nA. 1\nB. 2\nC. None\nD.  4\nAnswer:"
    )
    assert prompt.options == (" A", " B", " C", " D") and prompt.gold == 1
    assert prompt.group == "small_sums" and prompt.item == mmlu.load(tmp_path, "test")[0].item


def test_questions_are_a_group_where_they_share_examples(tmp_path: Path):
    write(tmp_path, "test", [SUM, {**SUM, "question": "What is 2 + 2?"}])
    write(tmp_path, "dev", [WORTH])
    questions, examples = mmlu.load(tmp_path, "test"), mmlu.load(tmp_path, "dev")
    asked = [mmlu.prompts(questions, examples, "letter", count) for count in (1, 0)]
    groups = [[prompt.group for prompt in prompts] for prompts in asked]
    assert groups == [["small_sums"] * 2, [question.item for question in questions]]
    # of setting 4 all levels have the same groups, since their resamples are the same
    for shots, expected in (((0, 1), groups[0]), ((0,), groups[1])):
        for level in k_shot.levels(questions, examples, shots, "letter"):
            assert [prompt.group for prompt in level.prompts] == expected


def test_a_repeated_question_is_no_independent_item(data_dir: Path):
    """Without examples each is a group of its own, and the same question again is in that of the first."""
    rows = [row_of(question) for question in make_all(9)]
    write(data_dir, "test", [*rows, rows[4]])
    levels = [factoid_vs_mcq.choice_level(mmlu.load(data_dir, "test"), [], 0, "letter")]
    for number, option in ((2, "--num_shots"), (4, "--shots")):
        levels += build(SETTINGS[number], values_of(SETTINGS[number], option, "0", data_dir=data_dir))
    for level in levels:
        items, groups = zip(*((prompt.item, prompt.group) for prompt in level.prompts), strict=True)
        assert len(set(items)) == 10 and groups[4] == groups[9] and len(set(groups)) == 9
        assert level.facts["repeated_items"] == 1


def test_cloze_prompts_are_those_of_lm_evaluation_harness(tmp_path: Path):
    write(tmp_path, "test", [SUM])
    write(tmp_path, "dev", [WORTH, {**WORTH, "question": "3 + 3 =", "answer": "D"}])
    (prompt,) = mmlu.prompts(mmlu.load(tmp_path, "test"), mmlu.load(tmp_path, "dev"), "cloze")
    assert text_of(prompt) == (
        "The following are questions (with answers) about small sums.\n\n"
        "Question: 2 + 2 =\nAnswer: 4\n\n"
        "Question: 3 + 3 =\nAnswer: 6\n\n"
        "Question: What is 1 + 1?\nAnswer:"
    )
    assert prompt.options == (" 1", " 2", " None", "  4") and prompt.gold == 1


def test_without_examples_the_header_stays(tmp_path: Path):
    (prompt,) = mmlu.prompts([make(1)], [make(2)], "letter", 0)
    assert prompt.shots == () and prompt.header.endswith("about small sums.\n\n")


@pytest.mark.parametrize(
    "choice",
    [
        "All of the above.", "none of above", "None of the options given is correct.", "both A and B",
        "Neither a nor b.", "Both A & C", "A, B, and C", "A and C only", "(A) and (C)", "both (a) and (b)",
        "Both", "neither.", "All of these options. To make it too costly", "Any 2 of the above values",
        "a. and c. above", "None of them", "All of (a) to (c) are advantages", "all the above", "Options A and B",
        "A B and C", "Older adults do none of those",
    ],
)  # fmt: skip
def test_options_that_mean_others(choice: str):
    assert refers_to_others(choice)


@pytest.mark.parametrize(
    "choice",
    [
        "None", "none", "I and II only", "98% or above", "Vitamins A and C", "C, C++", "all subcellular compartments",
        "both symmetric and anti-symmetric", "A and B are equally good athletes.", "just above eye level",
        "neither the tires nor the bicycles.", "all of our inward principles", "none of them are successful",
        "P(A and B) = P(A) P(B)", "a citizen of both State B and State C", "A", "Both 35Cl and 37Cl have I = 0.",
    ],
)  # fmt: skip
def test_options_that_stand_by_themselves(choice: str):
    assert not refers_to_others(choice)


def test_what_cannot_be_reduced_is_counted_by_its_reason():
    plain, few = make(1), make(2, num_choices=3)
    refers = make(3)._replace(choices=("red", "blue", "green", "none of the above"))
    twice = make(4)._replace(choices=("red", "blue", "red ", "green"))
    questions = [few, plain, refers, twice, refers]
    counts = {"too_few_options": 1, "options_refer_to_others": 2, "duplicate_options": 1}
    assert mmlu.reducible(questions, 4) == ([plain], counts)
    assert mmlu.reducible(questions, 3)[0] == [few, plain]
    kept, left_out = mmlu.reducible(questions, 4, keep_referring=True)
    assert kept == [plain, refers, refers] and left_out == {"too_few_options": 1, "duplicate_options": 1}


@pytest.mark.parametrize("keep_order", [False, True])
def test_smaller_sets_of_options_are_inside_larger_ones(keep_order: bool):
    questions = [make(number, num_choices=4 + number % 2) for number in range(30)]
    smaller = [set() for _ in questions]
    for count in (2, 3, 4):
        reduced = mmlu.reduce_options(questions, count, 5, keep_order)
        for question, new, fewer in zip(questions, reduced, smaller, strict=True):
            assert len(set(new.choices)) == len(new.choices) == count and fewer < set(new.choices)
            assert set(new.choices) <= set(question.choices)
            assert new.choices[new.answer] == question.choices[question.answer]
            assert (new.question, new.subject, new.item) == (question.question, question.subject, question.item)
        if keep_order:
            assert all(list(new.choices) == sorted(new.choices) for new in reduced)
        smaller = [set(new.choices) for new in reduced]


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_constant_letter_scores_one_in_k(count: int, seed: int):
    reduced = mmlu.reduce_options(make_all(), count, seed)
    for members in mmlu.by_subject(reduced).values():
        right = Counter(question.answer for question in members)
        share = len(members) / count
        assert all(int(share) <= right[place] <= int(share) + 1 for place in range(count))


def test_every_distractor_stays_equally_often():
    """With two options, each of three distractors stays in a third of 3000 questions; 5 standard deviations are 129."""
    reduced = mmlu.reduce_options([make(number) for number in range(3000)], 2, 0)
    stayed = Counter()
    for number, question in enumerate(reduced):
        (place,) = {int(choice[-1]) for choice in question.choices} - {number * 7 % 4}
        stayed[(place - number * 7) % 4] += 1
    assert set(stayed) == {1, 2, 3} and all(abs(count - 1000) < 129 for count in stayed.values())


def test_the_right_options_place_and_the_distractors_order_are_independent():
    """All 24 orders of four options appear: 4 places for the right one times 6 orders of the others."""
    reduced = mmlu.reduce_options([make(number) for number in range(0, 4000, 4)], 4, 0)
    orders = Counter(tuple(int(choice[-1]) for choice in question.choices) for question in reduced)
    assert len(orders) == 24 and max(orders.values()) < 3 * min(orders.values())


def test_seeds_give_other_options_and_places():
    one, other = (mmlu.reduce_options(make_all(), 3, seed) for seed in (0, 1))
    assert one == mmlu.reduce_options(make_all(), 3, 0)
    assert sum(a.answer != b.answer for a, b in zip(one, other, strict=True)) > 10
    assert sum(set(a.choices) != set(b.choices) for a, b in zip(one, other, strict=True)) > 10


def test_neither_order_nor_other_questions_matter_nor_the_global_generator():
    questions = make_all()
    whole = {question.item: question for question in mmlu.reduce_options(questions, 3, 0)}
    state = random.getstate()
    shuffled = random.Random(1).sample(questions, len(questions))
    assert {question.item: question for question in mmlu.reduce_options(shuffled, 3, 0)} == whole
    for count in (1, 5, 17, 40):
        drawn = sample(questions, count, key=lambda question: question.item)
        assert all(question == whole[question.item] for question in mmlu.reduce_options(drawn, 3, 0))
    one_subject = [question for question in questions if question.subject == "large_sums"]
    assert all(question == whole[question.item] for question in mmlu.reduce_options(one_subject, 3, 0))
    assert random.getstate() == state


def test_setting_2_has_the_same_questions_at_every_level(data_dir: Path):
    args = values_of(SETTINGS[2], data_dir=data_dir)
    levels = build(SETTINGS[2], args)
    names = [(level.name, level.difficulty, level.dataset, level.reader) for level in levels]
    assert names == [
        ("2 options", 2.0, "mmlu", "letter"), ("3 options", 3.0, "mmlu", "letter"),
        ("4 options", 4.0, "mmlu", "letter"), ("4 options, untouched", 4.0, "mmlu", "letter"),
    ]  # fmt: skip
    items = [question.item for question in mmlu.load(data_dir, "test")]
    for count, level in zip((2, 3, 4), levels, strict=False):
        assert [prompt.item for prompt in level.prompts] == items
        assert all(prompt.options == tuple(f" {letter}" for letter in "ABCD"[:count]) for prompt in level.prompts)
        assert all(len(prompt.shots) == 5 for prompt in level.prompts)
        assert all(f"{LETTERS[count]}. " not in text_of(prompt) for prompt in level.prompts)
        assert level.facts == dict.fromkeys(
            ("options_refer_to_others", "duplicate_options", "too_few_options", "examples_left_out"), 0
        )
    untouched = mmlu.prompts(mmlu.load(data_dir, "test"), mmlu.load(data_dir, "dev"), "letter")
    assert levels[3].prompts == untouched and levels[3].facts == {"reference_only": 1}


def test_examples_are_reduced_alike_and_their_right_places_balanced(data_dir: Path):
    args = values_of(SETTINGS[2], "--no_untouched", data_dir=data_dir)
    for count, level in zip((2, 3, 4), build(SETTINGS[2], args), strict=True):
        for prompt in level.prompts[:2]:
            right = Counter(re.search(r"Answer: ([A-D])\n\n$", shot)[1] for shot in prompt.shots)
            assert all(5 // count <= right[letter] <= 5 // count + 1 for letter in "ABCD"[:count])
            assert all(shot.count("\n") == count + 3 for shot in prompt.shots)  # question, options, answer, blank line


def test_the_seed_reduces_examples_too(data_dir: Path):
    def shots(seed: int) -> list[tuple[str, ...]]:
        args = values_of(SETTINGS[2], "--option_counts", "2", "--no_untouched", data_dir=data_dir)
        return [prompt.shots for prompt in build(SETTINGS[2], args, seed)[0].prompts]

    assert shots(0) == shots(0) != shots(1)


def test_setting_2_leaves_out_and_counts(data_dir: Path):
    test = [row_of(question) for question in make_all()]
    test[3]["choices"] = ["red", "blue", "green", "all of the above"]
    test[4]["choices"] = ["red", "red", "green", "blue"]
    test[5] = row_of(make(5, num_choices=3))
    write(data_dir, "test", test)
    dev = [row_of(make(number, subject)) for subject in ("large_sums", "small_sums") for number in range(100, 105)]
    dev[2]["choices"] = ["red", "blue", "both A and B", "green"]
    write(data_dir, "dev", dev)
    levels = build(SETTINGS[2], values_of(SETTINGS[2], data_dir=data_dir))
    facts = {"options_refer_to_others": 1, "duplicate_options": 1, "too_few_options": 1, "examples_left_out": 1}
    assert [len(level.prompts) for level in levels] == [38, 38, 38, 41]
    assert all(level.facts == facts for level in levels[:3])
    for level in levels[:3]:
        assert {(prompt.group, len(prompt.shots)) for prompt in level.prompts} == {("large_sums", 4), ("small_sums", 5)}
    kept = build(SETTINGS[2], values_of(SETTINGS[2], "--keep_referring", data_dir=data_dir))
    assert len(kept[0].prompts) == 39
    assert kept[0].facts["options_refer_to_others"] == kept[0].facts["examples_left_out"] == 0
    assert (levels[3].name, levels[3].difficulty) == ("4 options, untouched", 4.0)


def test_setting_2_as_cloze_asks_the_same_and_offers_nested_options(data_dir: Path):
    args = values_of(SETTINGS[2], "--num_shots", "2", data_dir=data_dir, answer_mode="cloze")
    levels = build(SETTINGS[2], args)
    assert {level.reader for level in levels} == {"cloze"}
    for two, three, four, untouched in zip(*(level.prompts for level in levels), strict=True):
        assert text_of(two) == text_of(three) == text_of(four) == text_of(untouched)
        assert set(two.options) < set(three.options) < set(four.options) == set(untouched.options)
        assert len({prompt.options[prompt.gold] for prompt in (two, three, four, untouched)}) == 1


def test_setting_2_keeps_the_options_order_if_asked(data_dir: Path):
    args = values_of(SETTINGS[2], "--keep_option_order", "--option_counts", "4", data_dir=data_dir)
    ordered, untouched = build(SETTINGS[2], args)
    assert ordered.prompts == untouched.prompts


def test_setting_2_is_the_same_for_a_sample(data_dir: Path):
    whole = build(SETTINGS[2], values_of(SETTINGS[2], data_dir=data_dir), seed=3)
    part = build(SETTINGS[2], values_of(SETTINGS[2], data_dir=data_dir, max_items=9), seed=3)
    for all_of_them, some in zip(whole, part, strict=True):
        assert len(some.prompts) == 9
        assert all(by_item(all_of_them)[prompt.item] == prompt for prompt in some.prompts)
    args = values_of(SETTINGS[2], "--subjects", "large_sums", data_dir=data_dir, max_items=9)
    assert len(SETTINGS[2].load(args)[0]) == 9  # of the subject's 14 questions, not its share of 9 of all


def test_setting_2_names_what_is_wrong(data_dir: Path):
    for options, message in (
        (("--option_counts", "2", "5"), "--option_counts 5: the questions have 4 options at most"),
        (("--option_counts", "2", "2"), "--option_counts 2 2: a number is given twice"),
        (("--subjects", "small_sums", "sums"), "--subjects sums: there are large_sums, small_sums$"),
    ):
        with pytest.raises(ValueError, match=message):
            SETTINGS[2].load(values_of(SETTINGS[2], *options, data_dir=data_dir))
    write(data_dir, "dev", [row_of(make(number, "small_sums")) for number in range(100, 105)])
    with pytest.raises(ValueError, match=r"--num_shots 5: the dev split has 0 example\(s\) of the subject large_sums"):
        SETTINGS[2].load(values_of(SETTINGS[2], data_dir=data_dir))
    assert SETTINGS[2].load(values_of(SETTINGS[2], "--subjects", "small_sums", data_dir=data_dir))
    write(data_dir, "test", [{**SUM, "choices": ["1", "2", "3", "all of these"]}])
    with pytest.raises(ValueError, match=r"--option_counts 4: of 1 question\(s\) none is left: options_refer_to_oth"):
        SETTINGS[2].load(values_of(SETTINGS[2], data_dir=data_dir))
    for options in (("--option_counts", "1"), ("--num_shots", "6"), ("--num_shots", "-1")):
        with pytest.raises(argparse.ArgumentError, match=r"outside \["):
            values_of(SETTINGS[2], *options, data_dir=data_dir)


def test_setting_2_without_examples_needs_none(data_dir: Path):
    (data_dir / "mmlu" / "dev.jsonl").unlink()
    args = values_of(SETTINGS[2], "--num_shots", "0", data_dir=data_dir)
    assert MODULES[2].files(args) == [data_dir / "mmlu" / "test.jsonl"]
    assert all(prompt.shots == () for level in build(SETTINGS[2], args) for prompt in level.prompts)


@pytest.mark.parametrize("number", [2, 4])
def test_files_that_are_read(number: int, data_dir: Path):
    names = ["test.jsonl", "dev.jsonl"]
    assert [path.name for path in MODULES[number].files(values_of(SETTINGS[number], data_dir=data_dir))] == names
    hub = MODULES[number].files(values_of(SETTINGS[number], data_dir=None))
    assert [(source.hub_id, source.split) for source in hub] == [("cais/mmlu", "test"), ("cais/mmlu", "dev")]


@pytest.mark.parametrize("order", ["seeded", "file"])
def test_setting_4_prompts_are_nested(order: str, data_dir: Path):
    levels = build(SETTINGS[4], values_of(SETTINGS[4], "--shot_order", order, data_dir=data_dir))
    names = [(level.name, level.difficulty, level.dataset, level.reader) for level in levels]
    assert names == [
        ("5 shots", 0.0, "mmlu", "letter"), ("3 shots", 2.0, "mmlu", "letter"), ("1 shot", 4.0, "mmlu", "letter"),
        ("0 shots", 5.0, "mmlu", "letter"),
    ]  # fmt: skip
    items = [question.item for question in mmlu.load(data_dir, "test")]
    for count, level, most in zip((5, 3, 1, 0), levels, (levels[0],) * 4, strict=True):
        assert [prompt.item for prompt in level.prompts] == items
        for prompt, longest in zip(level.prompts, most.prompts, strict=True):
            assert prompt.shots == longest.shots[:count] and len(prompt.shots) == count
            start = text_of(prompt).removesuffix(prompt.question)
            assert text_of(longest).startswith(start) and prompt.question == longest.question
            assert prompt._replace(shots=()) == longest._replace(shots=())


def test_setting_4_in_the_files_order_is_the_usual_prompt(data_dir: Path):
    (level,) = build(SETTINGS[4], values_of(SETTINGS[4], "--shots", "2", "--shot_order", "file", data_dir=data_dir))
    dev = mmlu.load(data_dir, "dev")
    assert level.prompts == mmlu.prompts(mmlu.load(data_dir, "test"), dev, "letter", 2)
    large = next(prompt for prompt in level.prompts if prompt.group == "large_sums")
    assert large.shots == tuple(mmlu.shot_text(example, "letter") for example in dev[:2])
    assert level.difficulty == 3.0  # of five examples in the data


def test_setting_4_draws_the_examples_order_by_seed_and_content(data_dir: Path):
    def shots(seed: int) -> set[tuple[str, ...]]:
        (level,) = build(SETTINGS[4], values_of(SETTINGS[4], "--shots", "5", data_dir=data_dir), seed)
        return {prompt.shots for prompt in level.prompts}

    before = shots(0)
    assert len({frozenset(shots(seed)) for seed in range(4)}) == 4
    assert {frozenset(order) for order in shots(1)} == {frozenset(order) for order in before}
    dev = [row_of(question) for question in mmlu.load(data_dir, "dev")]
    write(data_dir, "dev", dev[::-1])
    assert shots(0) == before


@pytest.mark.parametrize(("number", "option"), [(2, "--num_shots"), (4, "--shots"), (6, "--num_shots")])
def test_examples_may_come_from_the_validation_split_and_are_never_asked(number: int, option: str, data_dir: Path):
    asked = make_all()
    fresh = [make(number, subject) for subject in ("large_sums", "small_sums") for number in range(200, 206)]
    write(data_dir, "validation", [row_of(question) for question in (*asked[:9], *fresh)])  # asked ones stand first
    (data_dir / "mmlu" / "dev.jsonl").unlink()
    (data_dir / "web_questions").mkdir()
    (data_dir / "web_questions" / "test.jsonl").write_text('{"question": "who", "answers": ["Ann"]}\n')
    own = ("--factoid_dataset", "web_questions") if number == 6 else ()
    args = values_of(SETTINGS[number], "--shot_split", "validation", option, "5", *own, data_dir=data_dir, max_items=7)
    assert [path.name for path in MODULES[number].files(args)][:2] == ["test.jsonl", "validation.jsonl"]
    level = build(SETTINGS[number], args)[0]
    assert len(level.prompts) == 7
    for prompt in level.prompts:
        numbers = {int(found) for shot in prompt.shots for found in re.findall(r"Question (\d+)\?", shot)}
        assert len(prompt.shots) == 5 and numbers <= set(range(200, 206))
    if number == 4:
        assert level.difficulty == 0.0  # as with the dev split
    fewer = values_of(SETTINGS[number], "--shot_split", "validation", option, "5", *own, data_dir=data_dir)
    write(data_dir, "validation", [row_of(question) for question in (*asked, *fresh[:4], *fresh[6:])])
    with pytest.raises(
        ValueError, match=rf"{option} 5: the validation split has 4 example\(s\) of the subject large_sums"
    ):
        SETTINGS[number].load(fewer)


def test_settings_without_examples_refuse_the_split_of_examples(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["--model_name_or_path", "nowhere", "--output_dir", str(tmp_path), "--shot_split", "validation"]
    for script in (setting3_context_length, setting5_human_gap):
        with pytest.raises(SystemExit):
            script.main(words)
        assert "--shot_split is obeyed by setting 2, 4, 6; asked for is setting" in capsys.readouterr().err


def test_setting_4_names_what_is_wrong(data_dir: Path):
    for options, message in (
        (("--shots", "0", "6"), r"--shots 6: the dev split has 5 example\(s\) of the subject (large|small)_sums"),
        (("--shots", "1", "1"), "--shots 1 1: a number is given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            SETTINGS[4].load(values_of(SETTINGS[4], *options, data_dir=data_dir))
    with pytest.raises(argparse.ArgumentError, match=r"outside \["):
        values_of(SETTINGS[4], "--shots", "-1", data_dir=data_dir)


@pytest.mark.network
def test_mmlu_on_the_hub():
    test = mmlu.load(None, "test")
    assert len(test) == len({question.item for question in test}) == 14042
    letters = Counter(LETTERS[question.answer] for question in test)
    assert letters == {"A": 3222, "B": 3462, "C": 3582, "D": 3776}
    assert len(mmlu.load(None, "dev")) == 57 * 5
