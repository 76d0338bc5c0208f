"""Multiple choice end to end, in this process, on a tiny random encoder: any number and order of options."""

import json
import random
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from result_keys import assert_keys_are_told
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from GLUE_tasks import Mcq_prune_oneshot, mcq_data, multiple_choice, pretrained
from GLUE_tasks import options as script_options
from GLUE_tasks.mcq_data import Question
from GLUE_tasks.runner import Inputs
from harness import run_folder

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

WORDS = ["good", "great", "fine", "bad", "awful", "poor", "film", "story", "plot"]
QUESTIONS = [
    Question("the film is", ("good", "so bad and awful", "a story"), 0),
    Question("the story", ("bad plot", "good plot"), 1),
    Question("a plot is", ("fine", "poor", "great", "so so", "bad"), 2),
    Question("so", ("awful", "great film"), 0),
]


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder: Path):
    return AutoTokenizer.from_pretrained(tiny_encoder)


@pytest.fixture(scope="module")
def model(tiny_encoder: Path):
    """The encoder with a head whose weights are large enough to tell options apart."""
    found = pretrained.load_pretrained(str(tiny_encoder), None, auto_class=AutoModelForMultipleChoice).copy(0).eval()
    with torch.no_grad():
        found.classifier.weight.mul_(50)
    return found


def batch_of(questions: list[Question], tokenizer) -> dict[str, torch.Tensor]:
    rows = multiple_choice.tokenize(questions, tokenizer, 16).remove_columns("length")
    return multiple_choice.collate(tokenizer, list(rows))


def choices(model, questions: list[Question], tokenizer, batch_size: int = 8) -> list[int]:
    rows = multiple_choice.tokenize(questions, tokenizer, 16)
    inputs = Inputs(rows, {"": rows}, lambda some: multiple_choice.collate(tokenizer, some))
    chosen, gold, counts = multiple_choice.predict_options(Accelerator(cpu=True), model, inputs, batch_size)
    assert gold.tolist() == [question.gold for question in questions]
    assert counts.tolist() == [len(question.options) for question in questions]
    return chosen.tolist()


def test_options_of_one_question_share_a_row_and_missing_ones_are_marked(tokenizer):
    batch = batch_of(QUESTIONS, tokenizer)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, 5, 10)  # CLS, 3 words, SEP, 4 words, SEP
    assert batch["is_option"].sum(dim=1).tolist() == [3, 2, 5, 2] and batch["labels"].tolist() == [0, 1, 2, 0]
    words = tokenizer.decode(batch["input_ids"][0, 1], skip_special_tokens=True)
    assert words == "the film is so bad and awful"
    assert torch.equal(batch["input_ids"][1, 4], batch["input_ids"][1, 0])  # a missing option repeats the first


def test_the_loss_is_the_models_own_where_all_have_as_many_options(model, tokenizer):
    batch = batch_of([QUESTIONS[1], QUESTIONS[3]], tokenizer)
    own = model(**{name: tensor for name, tensor in batch.items() if name != "is_option"}).loss
    assert torch.isclose(multiple_choice.option_loss(model, batch), own, rtol=1e-6)


def test_missing_options_have_no_part_in_loss_and_gradient(model, tokenizer):
    """The twin asks one question after another, with its own options alone."""
    alone = []
    for question in QUESTIONS:
        batch = batch_of([question], tokenizer)
        assert batch.pop("is_option").all()
        alone.append(model(**batch).loss)
    twin, loss = torch.stack(alone).mean(), multiple_choice.option_loss(model, batch_of(QUESTIONS, tokenizer))
    assert torch.isclose(loss, twin, rtol=1e-5)
    gradients = [torch.autograd.grad(value, list(model.parameters()), retain_graph=True) for value in (loss, twin)]
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(*gradients, strict=True))


def test_a_missing_option_is_never_chosen_and_neighbours_do_not_matter(model, tokenizer):
    together = choices(model, QUESTIONS, tokenizer)
    assert all(chosen < len(question.options) for chosen, question in zip(together, QUESTIONS, strict=True))
    assert together == [choices(model, [question], tokenizer)[0] for question in QUESTIONS]
    assert together == choices(model, QUESTIONS, tokenizer, batch_size=2)
    logits = multiple_choice.option_logits(model, batch_of(QUESTIONS, tokenizer), count=7)
    assert logits.shape == (4, 7) and (logits[1, 2:] < -1e38).all() and (logits[2, :5] > -1e3).all()


def test_the_order_of_the_options_does_not_change_which_text_is_chosen(model, tokenizer):
    draw = random.Random(0)
    questions = [
        Question(" ".join(draw.choices(WORDS, k=4)), tuple(" ".join(draw.sample(WORDS, 3)) for _ in range(k)), 0)
        for k in (2, 3, 4, 5) * 5
    ]
    orders = [draw.sample(range(len(question.options)), len(question.options)) for question in questions]
    turned = [
        Question(question.context, tuple(question.options[place] for place in order), order.index(0))
        for question, order in zip(questions, orders, strict=True)
    ]
    before, after = choices(model, questions, tokenizer), choices(model, turned, tokenizer)
    texts = [question.options[chosen] for question, chosen in zip(questions, before, strict=True)]
    assert texts == [question.options[chosen] for question, chosen in zip(turned, after, strict=True)]
    assert before != after and len(set(before)) > 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Which option holds a good word: 2 to 4 options, 120 questions and 41."""
    folder = tmp_path_factory.mktemp("mcq") / "opinions"
    folder.mkdir()
    draw = random.Random(0)
    paths = folder / "train.jsonl", folder / "validation.jsonl"
    for path, count in zip(paths, (120, 41), strict=True):
        rows = []
        for number in range(count):
            options = [f"{draw.choice(WORDS[6:])} so {word}" for word in draw.sample(WORDS[3:6], number % 3 + 1)]
            options.insert(draw.randrange(len(options) + 1), f"the {draw.choice(WORDS[:3])}")
            answer = next(place for place, text in enumerate(options) if text.startswith("the "))
            rows.append({"question": "the film is", "choices": options, "answer": answer})
        path.write_text("\n".join(map(json.dumps, rows)))
    return paths


@pytest.fixture
def options(tiny_encoder: Path, files: tuple[Path, Path]) -> list[str]:
    return [
        "--model_name_or_path", str(tiny_encoder), "--train_file", str(files[0]), "--validation_file", str(files[1]),
        "--max_length", "16", "--per_device_train_batch_size", "8", "--learning_rate", "3e-3", "--num_train_epochs",
        "2", "--noembed", "--mixed_precision", "no", "--seed", "41",
    ]  # fmt: skip


def run(*argv: object) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Mcq_prune_oneshot.main([str(word) for word in argv])


def test_a_sweep_learns_and_a_second_start_computes_nothing(options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sweep = [*options, "--sparse_method", "dense_transfer", "sparse_transfer", "--sparsity", 0.5,
             "--output_dir", tmp_path / "{task_name}" / "{transfer}" / "{strength}"]  # fmt: skip
    assert run(*sweep) == 0
    assert_keys_are_told(tmp_path)
    dense, sparse = run_folder.read_runs(tmp_path / "opinions")
    assert (dense["transfer"], sparse["transfer"], sparse["measured_sparsity"]) == (
        "dense_transfer", "sparse_transfer", pytest.approx(0.5, abs=1e-4)
    )  # fmt: skip
    for row in (dense, sparse):
        assert (row["task"], row["metric"], row["num_examples"], row["level"]) == ("opinions", "accuracy", 41, 100)
        assert row["chance"] == pytest.approx((14 / 2 + 14 / 3 + 13 / 4) / 41)
        assert row["option_counts"] == {"2": 14, "3": 14, "4": 13}
        items = run_folder.read_items(row["folder"])
        assert np.mean(items["prediction"] == items["label"]) == row["score"] == row["eval_accuracy"]
        assert row["stderr"] == pytest.approx(np.sqrt(row["score"] * (1 - row["score"]) / 41))
        assert (items["prediction"] < items["num_options"]).all()
    assert dense["score"] > 0.8  # chance + 6 standard errors

    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(pretrained, "load_pretrained", load)
    assert run(*sweep) == 0


def test_chance_is_the_most_frequent_answer_where_all_questions_have_the_same_options(options, tmp_path: Path):
    for name, count in (("train", 8), ("validation", 20)):
        rows = [
            {"question": "the film is", "choices": ["good", "bad"], "answer": int(n % 5 == 0)} for n in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = ["--train_file", tmp_path / "train.jsonl", "--validation_file", tmp_path / "validation.jsonl"]
    assert run(*options, *files, "--num_train_epochs", "1", "--output_dir", tmp_path / "run") == 0
    (row,) = run_folder.read_runs(tmp_path / "run")
    assert row["chance"] == 0.8


def test_the_first_questions_are_evaluated_and_chance_is_theirs(options, tmp_path: Path):
    """Of 41 questions the first four, which have 2, 3, 4 and 2 options."""
    argv = ["--max_eval_samples", 4, "--max_train_steps", 1, "--sparse_method", "dense_transfer"]
    assert run(*options, *argv, "--output_dir", tmp_path) == 0
    (row,), items = run_folder.read_runs(tmp_path), run_folder.read_items(tmp_path)
    asked = [
        json.loads(line) for line in Path(options[options.index("--validation_file") + 1]).read_text().splitlines()
    ]
    assert items["label"].tolist() == [question["answer"] for question in asked[:4]]
    assert row["num_examples"] == 4 and row["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 1 / 2) / 4)


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("--task_name winogrande", ("winogrande", "train", "winogrande_xl", (5, 0))),
        ("--task_name winogrande --winogrande_config winogrande_s --train_split train_pairs",
         ("winogrande", "train_pairs", "winogrande_s", (5, 0))),
        ("--task_name svamp --num_options 4 --option_seed 3", ("svamp", "train", None, (4, 3))),
    ],
)  # fmt: skip
def test_options_of_the_data_reach_what_reads_them(words: str, read: tuple, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mcq_data, "arithmetic_reader", lambda *given: given)
    monkeypatch.setattr(mcq_data, "load_benchmark", lambda name, _, *given: (name, *given))
    argv = ["--model_name_or_path", "m", "--output_dir", "o", *words.split()]
    args = script_options.parse(Mcq_prune_oneshot.make_parser(), argv)
    assert Mcq_prune_oneshot.load_questions(args, Mcq_prune_oneshot.named_tasks(args)[0])[0] == read


def test_a_pair_that_is_too_long_loses_the_end_of_its_longer_text(tokenizer):
    """Ten tokens: CLS, SEP and SEP, and seven of the context's nine words and the option's one."""
    (row,) = multiple_choice.tokenize([Question("the film is a story and so so so", ("good",), 0)], tokenizer, 10)
    assert tokenizer.decode(row["input_ids"][0]) == "[CLS] the film is a story and [SEP] good [SEP]"
    (row,) = multiple_choice.tokenize([Question("good", ("the film is a story and so so so",), 0)], tokenizer, 10)
    assert tokenizer.decode(row["input_ids"][0]) == "[CLS] good [SEP] the film is a story and [SEP]"


def test_every_line_of_list_cells_names_its_tasks_split(tiny_encoder: Path, tmp_path: Path, capsys):
    sweep = ["--model_name_or_path", tiny_encoder, "--task_name", "WinoGrande", "csqa", "--data_dir", tmp_path,
             "--train_split", "winogrande=train_pairs", "--sparse_method", "sparse_transfer", "--sparsity", 0.5, 0.7,
             "--output_dir", tmp_path / "{task_name}" / "{strength}", "--list_cells"]  # fmt: skip
    assert run(*sweep) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 4
    splits = [words[words.index("--train_split") + 1] for words in lines]
    assert splits == ["winogrande=train_pairs"] * 2 + ["commonsense_qa=train"] * 2
    assert run(*sweep, "--group_by", "strength") == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    for words in lines:
        start = words.index("--train_split") + 1
        assert words[start : start + 2] == ["winogrande=train_pairs", "commonsense_qa=train"]


def test_arithmetic_tasks_run_by_name(tiny_encoder: Path, tmp_path: Path):
    for task, split in (("svamp", "test"), ("mawps", "validation")):
        (tmp_path / task).mkdir()
        for name, first in (("train", 5), (split, 20)):
            bodies = [{"Body": f"the film is {n} and", "Question": "a story 2", "Answer": n + 2} for n in range(first)]
            plain = [{"question": f"the film is {n} and 2", "result_float": float(n + 2)} for n in range(first)]
            text = "\n".join(map(json.dumps, bodies if task == "svamp" else plain))
            (tmp_path / task / f"{name}.jsonl").write_text(text)
    assert run(
        "--model_name_or_path", tiny_encoder, "--task_name", "MAWPS", "SVAMP", "--data_dir", tmp_path, "--num_options",
        3, "--max_length", 16, "--max_train_steps", 1, "--noembed", "--sparse_method", "sparse_transfer", "--sparsity",
        0.5, "--output_dir", tmp_path / "runs" / "{task_name}",
    ) == 0  # fmt: skip
    rows = run_folder.read_runs(tmp_path / "runs")
    assert [(row["task"], row["num_examples"], row["chance"]) for row in rows] == [
        ("mawps", 20, pytest.approx(1 / 3)), ("svamp", 20, pytest.approx(1 / 3))
    ]  # fmt: skip
    assert [row["validation_split"] for row in rows] == ["validation", "test"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task_name piqa", "'piqa' is no multiple-choice task; there are commonsense_qa, winogrande, mawps, svamp "),
        ("", "give either --task_name or --train_file and --validation_file"),
        ("--task_name csqa --numeric_answers", "--numeric_answers goes with --train_file and --validation_file"),
        ("--train_file a.jsonl --validation_file b.jsonl --num_options 4", "--num_options goes with --numeric_answers"),
        ("--task_name csqa --option_seed 1", "--option_seed goes with --numeric_answers"),
        ("--task_name csqa --winogrande_config winogrande_s", "--winogrande_config is the hub's: it goes with"),
        ("--task_name csqa --train_split winogrande=train_pairs", "--train_split: winogrande is not in --task_name"),
        ("--task_name csqa --train_split a b", "--train_split: two splits, a and b, of all tasks"),
        ("--train_file a.jsonl --validation_file b.jsonl --train_split x", "--train_split goes with --task_name"),
        ("--task_name csqa --train_split x=train", "'x' is no multiple-choice task"),
        ("--train_file a.jsonl --validation_file b.jsonl --numeric_answers --num_options 1", "1 is outside [2, 26]"),
        ("--train_file nowhere.jsonl --validation_file b.jsonl", "there is no file nowhere.jsonl"),
        ("--train_file a.txt --validation_file b.jsonl", "a.txt is not one of .jsonl.gz, .jsonl"),
    ],
)
def test_mistakes_are_named_before_a_model_loads(words: str, message: str, tiny_encoder, tmp_path, capsys, monkeypatch):
    def load(*_):
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(pretrained, "load_pretrained", load)
    with pytest.raises(SystemExit) as stopped:
        run("--model_name_or_path", tiny_encoder, "--max_length", 16, "--output_dir", tmp_path, *words.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_help_explains_every_option_and_says_where_the_recipe_differs():
    parser = Mcq_prune_oneshot.make_parser()
    text = " ".join(parser.format_help().split())
    assert all(action.help for action in parser._actions)
    assert "peak learning rate of AdamW (default 1e-05)" in text and "Where we differ" in text
