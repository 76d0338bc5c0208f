"""GLUE_tasks/mcq_data.py: questions of the benchmarks and of files, numbers as options, what is refused."""

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from GLUE_tasks import mcq_data
from GLUE_tasks.mcq_data import Question, numeric_options

CSQA = {"question": "Where is ink?", "choices": {"label": list("ABCDE"), "text": ["pen", "sky", "sea", "sun", "egg"]},
        "answerKey": "A"}  # fmt: skip
GAP = {"sentence": "The cup did not fit the box as the _ was big.", "option1": "box", "option2": "cup", "answer": "2"}
PORT = {"question": "Which port?", "choices": ["80", "443"], "answer": "443"}


def write(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(row: dict) -> Question:
    return mcq_data.read_question(row, "here")


@pytest.mark.parametrize("spelling", ["CommonsenseQA", "commonsense_qa", "CSQA"])
def test_task_names_in_any_spelling(spelling: str):
    assert mcq_data.canonical_name(spelling) == "commonsense_qa"


def test_benchmarks_put_what_options_share_first(tmp_path: Path):
    for split in ("train", "validation"):
        write(tmp_path / "commonsense_qa" / f"{split}.jsonl.gz", CSQA)
    write(tmp_path / "winogrande" / "train_pairs.jsonl", GAP, {**GAP, "answer": "1"})
    write(tmp_path / "winogrande" / "validation.jsonl", GAP)
    task = mcq_data.load_benchmark("commonsense_qa", tmp_path)
    assert task.train == [Question("Q: Where is ink?", ("A: pen", "A: sky", "A: sea", "A: sun", "A: egg"), 0)]
    assert [path.name for path in task.files] == ["train.jsonl.gz", "validation.jsonl.gz"]
    task = mcq_data.load_benchmark("winogrande", tmp_path, train_split="train_pairs")
    assert task.validation == [
        Question("The cup did not fit the box as the", ("box was big.", "cup was big."), 1)
    ]  # fmt: skip
    assert [question.gold for question in task.train] == [1, 0]
    assert task.facts == {"train_split": "train_pairs", "validation_split": "validation", "validation_in_train": 1,
                          "option_counts": {"2": 1}}  # fmt: skip


def test_the_hub_is_asked_for_config_and_splits(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(name: str, config: str | None, split: str, **_):
        asked.append((name, config, split))
        return [GAP]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    mcq_data.load_benchmark("winogrande", None, hub_config="winogrande_s")
    assert asked == [("allenai/winogrande", "winogrande_s", split) for split in ("train", "validation")]


@pytest.mark.parametrize("answer", ["443", "B", 1])
def test_an_answer_is_a_text_a_letter_or_an_index(answer):
    assert read({**PORT, "answer": answer}) == Question("Q: Which port?", ("A: 80", "A: 443"), 1)
    assert read({**PORT, "question": " Which port? ", "answer": answer}) == read(PORT)


def test_a_context_comes_first_and_is_what_gets_cut():
    assert read({**PORT, "context": "HTTPS uses 443. "}) == Question(
        "HTTPS uses 443.", ("Q: Which port? A: 80", "Q: Which port? A: 443"), 1
    )


def test_csv_has_options_in_json_or_in_lettered_columns(tmp_path: Path):
    (tmp_path / "a.csv").write_text('question,choices,answer\nWhich port?,"[""80"", ""443""]",443\n')
    (tmp_path / "b.csv").write_text("question,A,B,C,answer\nWhich port?,80,443,,B\nWhich key?,Esc,F1,F5,F5\n")
    task = mcq_data.load_files(tmp_path / "a.csv", tmp_path / "b.csv", mcq_data.read_question)
    assert task.train == task.validation[:1] == [read(PORT)]
    assert task.validation[1] == Question("Q: Which key?", ("A: Esc", "A: F1", "A: F5"), 2)
    assert task.facts == {"validation_in_train": 1, "option_counts": {"2": 1, "3": 1}}


def test_rows_as_the_hub_has_them_are_read_too():
    assert read({**CSQA, "question": "Where is ink?"}) == mcq_data.read_commonsense_qa(CSQA, "here")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**PORT, "question": None}, "here lacks the field 'question'; it has choices, answer"),
        ({**PORT, "choices": None}, "here lacks the field 'choices'; it has question, answer"),
        ({**PORT, "answer": None}, "here lacks the field 'answer'; it has question, choices"),
        ({**PORT, "choices": ["443"]}, "here: 'choices' holds 1; allowed: 2 to 26"),
        ({**PORT, "choices": ["443", "443"]}, "here: 'choices' holds '443' more than once"),
        ({**PORT, "choices": ["443", ""]}, "here: 'choices' is empty"),
        ({**PORT, "choices": "80 or 443"}, "here: 'choices' is neither a list of texts nor one in JSON"),
        ({**PORT, "answer": "8080"}, "here: 'answer' is '8080'; allowed: the text of a choice, its letter"),
        ({**PORT, "answer": 2}, r"here: 'answer' is 2; allowed: .* its index \(0 to 1, a number\)"),
        ({**PORT, "question": " "}, "here: 'question' is empty"),
        ({**PORT, "context": 3}, "here: 'context' is no text but int"),
        ({"question": "Why?", "answerKey": "A"}, "here lacks the field 'choices'"),
    ],
)
def test_unusable_questions_name_the_field(row: dict, message: str):
    with pytest.raises(ValueError, match=message):
        read(row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**CSQA, "answerKey": ""}, "here: 'answerKey' is ''; allowed: A, B, C, D, E"),
        ({**CSQA, "choices": {"label": ["A", "B"], "text": ["pen", "sky"]}}, "has 2 options; CommonsenseQA has 5"),
        ({**CSQA, "choices": {"label": ["A", "B", "C"], "text": ["pen", "sky"]}}, "has 2 texts and 3 labels"),
    ],
)
def test_unusable_rows_of_commonsense_qa(row: dict, message: str):
    with pytest.raises(ValueError, match=message):
        mcq_data.read_commonsense_qa(row, "here")


def test_files_are_named_with_the_line(tmp_path: Path):
    good = write(tmp_path / "good.jsonl", PORT)
    bad = write(tmp_path / "bad.jsonl", PORT, {**PORT, "answer": "8080"})
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: 'answer' is '8080'"):
        mcq_data.load_files(good, bad, mcq_data.read_question)
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no questions"):
        mcq_data.load_files(good, write(tmp_path / "empty.jsonl"), mcq_data.read_question)
    with pytest.raises(ValueError, match=r"winogrande/train\.jsonl"):
        mcq_data.load_benchmark("winogrande", tmp_path)


def test_fields_of_a_file_that_nothing_reads_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    odd = write(tmp_path / "odd.jsonl", {**PORT, "Context": "x", "id": 1}, {"question": "?", "A": "x", "B": "y",
                                                                            "answer": "A"})  # fmt: skip
    mcq_data.load_files(odd, write(tmp_path / "good.jsonl", {**PORT, "question": "Port?"}), mcq_data.read_question)
    assert caplog.messages == [f"{odd}: fields not read: Context (did you mean context?), id"]


def wrong_options(numbers: list[float], answer: float, count: int) -> set[frozenset[str]]:
    """Every set of wrong options that 200 seeds give."""
    found = set()
    for seed in range(200):
        options, gold = numeric_options(numbers, answer, count, np.random.default_rng(seed))
        assert len(set(options)) == count and float(options[gold]) == answer
        found.add(frozenset(options) - {options[gold]})
    return found


def test_wrong_numbers_are_other_operations_then_the_numbers_then_near_misses():
    """8 and 3, answer 5: larger are 11 and 24 by operations, then 8, 6, 7; smaller are 3, then 4, 2 (8/3 is not whole).

    None, one or both of two wrong options are smaller.
    """
    assert wrong_options([8, 3], 5, 3) == {
        frozenset(pair) for pair in (("11", "24"), ("11", "3"), ("24", "3"), ("3", "4"))
    }
    found = wrong_options([8, 3], 5, 6)
    assert {"11", "24", "8", "6", "7"} in found and {"3", "4", "2", "1", "0"} in found and len(found) > 5


def test_options_have_the_answers_form():
    assert wrong_options([3, 2], 1.5, 2) == {
        frozenset([value]) for value in ("6", "5", "1", "0.67")
    }  # 3 - 2, 2 / 3; 2 - 3 is negative
    assert wrong_options([], 2.5, 2) == {frozenset(["2.75"]), frozenset(["2.25"])}  # a tenth off
    assert wrong_options([7, 9], -2, 2) == {frozenset([value]) for value in ("16", "63", "2", "-3")}
    assert wrong_options([4], 0, 3) == {frozenset(["4", "1"])}  # nothing is smaller


def test_neither_place_nor_size_betrays_the_answer():
    places, ranks = [], []
    for seed in range(400):
        options, gold = numeric_options([18, 3], 15, 4, np.random.default_rng(seed))
        places.append(gold)
        ranks.append(sorted(map(float, options)).index(15))
    for found in (places, ranks):
        assert all(70 <= found.count(place) <= 130 for place in range(4))  # 100 +- 3.5 standard deviations


SVAMP = {"ID": "x", "Body": "Ann had 8 pens. She lost 3 pens", "Question": "How many are left?", "Answer": 5.0}
MAWPS = {"Question": "Ann had N_00 pens . She lost N_01 . How many are left ?", "Numbers": "8.0 3", "Answer": "5"}


def test_svamps_and_mawps_rows_become_choices_that_depend_on_seed_and_text_alone():
    found = mcq_data.arithmetic_reader(4, 0)(SVAMP, "here")
    assert found.context == "Q: Ann had 8 pens. She lost 3 pens. How many are left?"
    assert found.options[found.gold] == "A: 5" and len(set(found.options)) == 4
    assert found == mcq_data.arithmetic_reader(4, 0)({**SVAMP, "ID": "y"}, "there")
    assert any(found != mcq_data.arithmetic_reader(4, seed)(SVAMP, "here") for seed in (1, 2, 3))
    numbered = {**MAWPS, "Question": MAWPS["Question"].replace("N_0", "number")}
    for row in (MAWPS, {**numbered, "Body": "Ann had number0 pens ."}):
        assert mcq_data.arithmetic_reader(4, 0)(row, "here").context == (
            "Q: Ann had 8 pens . She lost 3 . How many are left ?"
        )


def test_mawps_numbers_are_written_in_full():
    """As f"{1250375:g}" would not be; numbers_in reads them off the text for the wrong options."""
    row = {**MAWPS, "Numbers": "1250375 33.3333333", "Answer": 1250341.67}
    found = mcq_data.arithmetic_reader(4, 0)(row, "here")
    assert found.context == "Q: Ann had 1250375 pens . She lost 33.3333333 . How many are left ?"
    assert mcq_data.numbers_in(found.context) == [1250375, 33.3333333]


CALC_MAWPS = {"id": "mawps__1", "question": "Ann had 8 pens . She lost 3 . How many are left ?", "chain": "<gadget>",
              "result": "5", "result_float": 5.0, "equation": "x=8-3", "expression": "8 - 3"}  # fmt: skip


def test_arithmetic_tasks_are_read_in_their_published_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = {**SVAMP, "Body": "Bob had 9 pens. He lost 2 pens"}
    for split, row in (("train", SVAMP), ("test", other)):
        write(tmp_path / "svamp" / f"{split}.jsonl", row)
    for split in ("train", "validation"):
        write(tmp_path / "mawps" / f"{split}.jsonl", CALC_MAWPS)
    read = mcq_data.arithmetic_reader(4, 0)
    task = mcq_data.load_benchmark("svamp", tmp_path, read_arithmetic=read)
    assert task.train == [read(SVAMP, "")] and task.validation == [read(other, "")]
    assert task.facts["validation_split"] == "test" and task.facts["option_counts"] == {"4": 1}
    task = mcq_data.load_benchmark("mawps", tmp_path, read_arithmetic=read)
    question = task.validation[0]
    assert question.context == "Q: Ann had 8 pens . She lost 3 . How many are left ?"
    assert question.options[question.gold] == "A: 5" and len(question.options) == 4

    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *names, split, **_: asked.append((*names, split)) or [CALC_MAWPS]
    )
    mcq_data.load_benchmark("mawps", None, read_arithmetic=read)
    mcq_data.load_benchmark("svamp", None, read_arithmetic=read)
    assert asked == [
        ("MU-NLPC/Calc-mawps", None, "train"), ("MU-NLPC/Calc-mawps", None, "validation"),
        ("ChilleD/SVAMP", None, "train"), ("ChilleD/SVAMP", None, "test"),
    ]  # fmt: skip


@pytest.mark.network
def test_arithmetic_on_the_hub():
    for name, sizes in {"svamp": (700, 300), "mawps": (1089, 1040)}.items():
        task = mcq_data.load_benchmark(name, None, read_arithmetic=mcq_data.arithmetic_reader(5, 0))
        assert (len(task.train), len(task.validation)) == sizes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**SVAMP, "Answer": "five"}, "here: 'Answer' is 'five', no number"),
        ({**SVAMP, "Answer": "nan"}, "here: 'Answer' is 'nan', no number"),
        ({"Question": "How many?"}, "here lacks the field 'Answer'"),
        ({"Answer": 5}, "here lacks the field 'Question'; it has Answer"),
        ({**MAWPS, "Numbers": "8"}, "here: the text has N_01, 'Numbers' has 1"),
        ({**MAWPS, "Numbers": "8 x"}, "here: 'Numbers' holds 'x', no number"),
    ],
)
def test_unusable_word_problems_name_the_field(row: dict, message: str):
    with pytest.raises(ValueError, match=message):
        mcq_data.arithmetic_reader(5, 0)(row, "here")


@pytest.mark.parametrize(
    ("options", "answer", "texts", "gold"),
    [
        ("good,,poor,awful", "C", ("good", "poor", "awful"), 1),
        ("good,,poor,awful", "2", ("good", "poor", "awful"), 1),  # its index, counted with the empty one
        ("good,,poor,awful", "0", ("good", "poor", "awful"), 0),
        ("good,,poor,awful", "poor", ("good", "poor", "awful"), 1),
        (",good,,poor", "D", ("good", "poor"), 1),
        ("NA,None,nan,null", "nan", ("NA", "None", "nan", "null"), 2),
        ("80,443,,", "443", ("80", "443"), 1),
    ],
)
def test_an_empty_option_in_csv_keeps_the_letters(
    options: str, answer: str, texts: tuple[str, ...], gold: int, tmp_path: Path
):
    (tmp_path / "q.csv").write_text(f"question,A,B,C,D,answer\nwhich,{options},{answer}\n")
    question = mcq_data.load_files(tmp_path / "q.csv", tmp_path / "q.csv", mcq_data.read_question).train[0]
    assert question.options == tuple(f"A: {text}" for text in texts) and question.gold == gold


def test_null_letters_keep_theirs_and_index_0_counts():
    row = {"question": "which", "A": "good", "B": None, "C": "poor", "answer": "C"}
    question = mcq_data.read_question(row, "here")
    assert question.options == ("A: good", "A: poor") and question.gold == 1
    assert mcq_data.read_question({**row, "answer": 0}, "here").gold == 0
    keyed = {"question": "which", "choices": {"text": ["good", "poor"], "label": [0, 1]}, "answerKey": 0}
    assert mcq_data.read_question(keyed, "here").gold == 0
    assert mcq_data.read_question({**keyed, "answerKey": "1"}, "here").gold == 1
