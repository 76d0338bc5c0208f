import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from setting_values import values_of

from llm_tasks.levels import item_id
from llm_tasks.settings import factoid_vs_mcq
from llm_tasks.tasks import factoid
from llm_tasks.tasks.factoid import freebase_rows, load, prompt

FREEBASE = {
    "Question-ID": "FreebaseQA-eval-0",
    "RawQuestion": "Who painted it? ",
    "ProcessedQuestion": "who painted it",
    "Parses": [
        {"Parse-Id": "P0", "Answers": [{"AnswersMid": "m.1", "AnswersName": ["goya"]}]},
        {"Parse-Id": "P1", "Answers": [{"AnswersName": "francisco goya"}, {"AnswersName": ["goya", "don francisco"]}]},
    ],
}
NAMES = ("goya", "francisco goya", "don francisco")


def as_columns(row: dict) -> dict:
    """A FreebaseQA row as the hub's conversion has it: structs of lists, also inside each other."""
    answers = [
        {"AnswersMid": ["m"] * len(parse["Answers"]), "AnswersName": [part["AnswersName"] for part in parse["Answers"]]}
        for parse in row["Parses"]
    ]
    return {**row, "Parses": {"Parse-Id": [parse["Parse-Id"] for parse in row["Parses"]], "Answers": answers}}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as <tmp_path>/<path>.jsonl; returns the --data_dir."""

    def write(path: str, *rows: dict) -> Path:
        file = tmp_path / f"{path}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


def test_every_answer_of_every_parse_counts_whatever_holds_it(write: Callable):
    data_dir = write("freebase_qa/test", FREEBASE, {**as_columns(FREEBASE), "RawQuestion": "Again?"})
    first, second = load("freebaseqa", data_dir)
    assert first.question == "Who painted it?"
    assert first.answers == second.answers == NAMES
    assert first.item == item_id("Who painted it?") != second.item


@pytest.mark.parametrize("name", ["FreebaseQA-eval.json", "FreebaseQA-eval.json.gz"])
def test_the_published_file(tmp_path: Path, name: str):
    text = json.dumps({"Dataset": "FreebaseQA-eval", "Questions": [FREEBASE, {**FREEBASE, "RawQuestion": "Again?"}]})
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode("utf-8-sig"))
    assert [question.answers for question in load("freebaseqa", None, path)] == [NAMES, NAMES]
    assert [where for where, _ in freebase_rows(path)] == [f"{path}, question 1", f"{path}, question 2"]


def test_the_other_sets(write: Callable):
    answer = {"value": "Goya", "aliases": ["Francisco Goya"], "normalized_aliases": ["goya"], "type": "x"}
    write("trivia_qa/rc.wikipedia.nocontext/validation", {"question": "Who?", "answer": answer})
    write("nq_open/validation", {"question": "who", "answer": ["Goya", "F. Goya"]})
    data_dir = write("web_questions/test", {"question": "who?", "answers": ["Goya"]})
    assert load("triviaqa", data_dir)[0].answers == ("Goya", "Francisco Goya", "goya")
    assert load("nq_open", data_dir)[0].answers == ("Goya", "F. Goya")
    assert load("web_questions", data_dir)[0].answers == ("Goya",)


def test_a_repeated_question_has_all_answers(write: Callable):
    rows = {"question": "who", "answer": ["Goya"]}, {"question": "who ", "answer": ["Dix", "Goya"]}
    (question,) = load("nq_open", write("nq_open/validation", *rows))
    assert question.answers == ("Goya", "Dix")


def test_prompt_by_hand():
    made = prompt(factoid.Question("id", "Who?", ("Goya",)))
    assert made.header + made.question == "Please give answer to this question: Who?\nThe answer is"
    assert made.answers == ("Goya",) and made.item == "id" and not made.options and made.gold is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"Questions": []}', "holds no list 'Questions'"),
        ('{"questions": [1]}', "holds no list 'Questions'"),
        ('"x"', "holds no list 'Questions'"),
        ("{", "cannot be read as JSON"),
        ('{"Questions": [1]}', "question 1 is no JSON object"),
        ('{"Questions": [{"RawQuestion": "Who?"}]}', "question 1 lacks the field 'Parses'; it has RawQuestion"),
        ('{"Questions": [{"RawQuestion": " ", "Parses": []}]}', "question 1: 'RawQuestion' is empty"),
        ('{"Questions": [{"RawQuestion": "Who?", "Parses": []}]}', "question 1: 'Parses' holds no text"),
        (
            '{"Questions": [{"RawQuestion": "Who?", "Parses": [{"Answers": [{"AnswersName": 1}]}]}]}',
            "question 1: 'Parses' is no text but int",
        ),
    ],
)
def test_damaged_files_of_freebase_qa_are_named(tmp_path: Path, content: str, message: str):
    path = tmp_path / "FreebaseQA-eval.json"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        load("freebaseqa", None, path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_missing_and_other_files_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="--factoid_file: there is no file"):
        load("freebaseqa", None, tmp_path / "none.json")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match=r"--factoid_file: .*x.txt is not one of .json, .json.gz"):
        load("freebaseqa", None, tmp_path / "x.txt")
    (tmp_path / "x.json.gz").write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        load("freebaseqa", None, tmp_path / "x.json.gz")


def test_damaged_rows_name_file_line_and_field(write: Callable):
    data_dir = write(
        "nq_open/validation", {"question": "who", "answer": ["Goya"]}, {"question": "who", "answer": "Goya"}
    )
    with pytest.raises(ValueError, match=r"nq_open/validation.jsonl, line 2: 'answer' is no list of texts but str"):
        load("nq_open", data_dir)


def parsed(*argv: str, data_dir: Path | None = None, **shared: object) -> factoid_vs_mcq.Values:
    return values_of(factoid_vs_mcq.SETTING, *argv, data_dir=data_dir, **shared)


@pytest.fixture
def data_dir(write: Callable) -> Path:
    """Four MMLU questions, five examples, and three questions for facts."""
    row = {"subject": "art", "choices": ["a", "b", "c", "d"], "answer": 1}
    write("mmlu/dev", *({**row, "question": f"Example {number}?"} for number in range(5)))
    write("freebase_qa/test", *({**FREEBASE, "RawQuestion": f"Fact {number}?"} for number in range(3)))
    return write("mmlu/test", *({**row, "question": f"Question {number}?"} for number in range(4)))


def test_levels_of_setting_6(data_dir: Path):
    args = parsed(data_dir=data_dir)
    choice, facts = factoid_vs_mcq.build(factoid_vs_mcq.load(args), args, 0, None)
    assert (choice.name, choice.difficulty, choice.dataset, choice.reader) == ("MMLU (choice)", 1.0, "mmlu", "letter")
    assert (facts.name, facts.difficulty, facts.dataset, facts.reader) == (
        "FreebaseQA (factoid)", 2.0, "freebaseqa", "answer",
    )  # fmt: skip
    assert len(choice.prompts) == 4 and len(facts.prompts) == 3
    assert choice.prompts[0].question == "Question 0?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    assert [len(prompt.shots) for prompt in choice.prompts] == [5] * 4 and choice.prompts[0].gold == 1
    assert facts.prompts[0].question == "Please give answer to this question: Fact 0?\nThe answer is"
    assert facts.prompts[0].answers == NAMES and not facts.prompts[0].shots
    names = [path.relative_to(data_dir).as_posix() for path in factoid_vs_mcq.files(args)]
    assert names == ["mmlu/test.jsonl", "mmlu/dev.jsonl", "freebase_qa/test.jsonl"]


def test_a_sample_is_of_both_levels(data_dir: Path):
    args = parsed(data_dir=data_dir, max_items=2)
    choice, facts = factoid_vs_mcq.build(factoid_vs_mcq.load(args), args, 0, None)
    assert len(choice.prompts) == len(facts.prompts) == 2


def test_the_splits_of_the_hub_have_answers():
    found = {name: (own.source.hub_id, own.source.hub_split) for name, own in factoid.FACTOID_SETS.items()}
    assert found == {
        "freebaseqa": ("KelvinJiang/freebase_qa", "test"), "triviaqa": ("mandarjoshi/trivia_qa", "validation"),
        "nq_open": ("google-research-datasets/nq_open", "validation"),
        "web_questions": ("stanfordnlp/web_questions", "test"),
    }  # fmt: skip


def test_options_of_setting_6(data_dir: Path, tmp_path: Path):
    file = tmp_path / "FreebaseQA-eval.json"
    file.write_text(json.dumps({"Questions": [FREEBASE]}))
    args = parsed(
        "--num_shots", "0", "--factoid_file", str(file), data_dir=data_dir, max_items=2, answer_mode="generate"
    )  # fmt: skip
    choice, facts = factoid_vs_mcq.build(factoid_vs_mcq.load(args), args, 0, None)
    assert choice.reader == "generate" and facts.reader == "answer"
    assert len(choice.prompts) == 2 and len(facts.prompts) == 1
    assert not any(prompt.shots for prompt in choice.prompts)
    assert [path.name for path in factoid_vs_mcq.files(args)] == [file.name, "test.jsonl"]
    with pytest.raises(ValueError, match="--factoid_file holds freebaseqa; --factoid_dataset is nq_open"):
        factoid_vs_mcq.load(parsed("--factoid_file", str(file), "--factoid_dataset", "nq_open", data_dir=data_dir))
    with pytest.raises(ValueError, match=r"has no nq_open/validation\.jsonl"):
        factoid_vs_mcq.load(parsed("--factoid_dataset", "nq_open", data_dir=data_dir))
