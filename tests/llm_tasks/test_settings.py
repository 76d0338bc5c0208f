"""Settings 2 to 6 and own_task as users start them: one model for all, folders, what is refused, killed sweeps."""

import dataclasses
import json
import logging
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from conftest import WORDS, slow_cases
from count_path import count_path
from huggingface_hub import HfApi, constants
from result_keys import assert_keys_are_told
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from analysis.table import level_table
from harness import records, run_folder
from llm_tasks import (
    evaluation,
    option_values,
    own_task,
    setting2_option_count,
    setting3_context_length,
    setting4_k_shot,
    setting5_human_gap,
    setting6_factoid_vs_mcq,
)
from llm_tasks import options as llm_options
from llm_tasks import run as llm_run
from llm_tasks.compressed_model import CompressibleModel, ModelSource
from llm_tasks.engine.log_likelihood import Scores, Work
from llm_tasks.engine.packing import Continuation
from llm_tasks.engine.processes import Processes
from llm_tasks.levels import LETTERS
from llm_tasks.settings import SETTINGS
from llm_tasks.settings import own_task as own_setting
from llm_tasks.settings import perplexity as perplexity_setting
from llm_tasks.tasks.commonsense import TASKS

ROOT = Path(__file__).parents[2]
NAMES = ["red", "blue", "green", "black", "white", "sky", "sea", "tree", "stone", "Answer", "Question", "Q", "is", ":"]
MAX_LENGTH = 320
SUBJECTS = ("small_sums", "large_sums")
SCRIPTS = {
    2: setting2_option_count, 3: setting3_context_length, 4: setting4_k_shot, 5: setting5_human_gap,
    6: setting6_factoid_vs_mcq,
}  # fmt: skip
Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mmlu_rows(count: int, first: int) -> Rows:
    """Questions of both subjects, their options four different names."""
    rows = []
    for number in range(first, first + count):
        draw = random.Random(number)
        for subject in SUBJECTS:
            question = " ".join(draw.choices(WORDS, k=5))
            choices = draw.sample(NAMES[:9], 4)
            rows.append({"question": question, "subject": subject, "choices": choices, "answer": draw.randrange(4)})
    return rows


def data_sets() -> dict[str, Rows]:
    """A few rows of each data set, by folder and split."""
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    squad = []
    for number in range(8):
        name = NAMES[number % 8]
        sentences = [f"The {text(4)}." for _ in range(5)]
        sentences[number % 5] = f"The {name} {text(3)}."
        answer = "purple" if number == 7 else name  # the last text does not hold it
        squad.append({"question": f"what {text(3)}", "context": " ".join(sentences), "answers": {"text": [answer]}})
    return {
        "mmlu/test": mmlu_rows(9, 100),
        "mmlu/dev": mmlu_rows(5, 200),
        "piqa/validation": [
            {"goal": text(4), "sol1": text(3), "sol2": text(3), "label": number % 2} for number in range(9)
        ],
        "hellaswag/validation": [
            {"activity_label": text(1), "ctx_a": text(4), "ctx_b": text(2), "endings": [text(3) for _ in range(4)],
             "label": str(number % 4)} for number in range(9)
        ],
        "openbookqa/test": [
            {"question_stem": text(4), "choices": {"text": draw.sample(NAMES[:9], 4), "label": list("ABCD")},
             "answerKey": "ABCD"[number % 4]} for number in range(9)
        ],
        "squad/validation": squad,
        "web_questions/test": [{"question": f"what {text(4)}", "answers": [NAMES[number]]} for number in range(9)],
    }  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data_dir")
    for name, rows in data_sets().items():
        write(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama that knows the words of the data, without a padding token."""
    vocabulary = dict.fromkeys(["<unk>", "<s>", "</s>", *WORDS, *NAMES, *LETTERS, "what", ".", "_"])
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("reader")
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=MAX_LENGTH, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)  # large enough for what is asked to matter
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(reader: Path, data_dir: Path, text_file: Path) -> list[str]:
    return [
        "--model_name_or_path", str(reader), "--data_dir", str(data_dir), "--precision", "no",
        "--calibration", str(text_file), "--nsamples", "4", "--calibration_length", "8",
    ]  # fmt: skip


# What single settings are told.
OWN = {
    3: ["--context_dataset", "squad", "--context_tokens", "24", "--context_shares", "40", "100",
        "--max_new_tokens", "3"],
    6: ["--factoid_dataset", "web_questions", "--max_new_tokens", "3"],
}  # fmt: skip
CELLS = ["--compression", "dense", "magnitude", "wanda", "--sparsity", "0.5", "--seed", "0", "1"]
SWEEP = ["--settings", "2", "3", "4", "5", "6", *CELLS, *OWN[3], *OWN[6]]
TEMPLATE = "{setting}/{compression}/{strength}/{seed}"


class Sweep:
    """A sweep over all settings: its command, folder, and how often models were loaded and compressed."""

    def __init__(self, options: list[str], folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.words = [*options, *SWEEP, "--output_dir", str(folder / TEMPLATE)]
        self.compressed: Counter[tuple] = Counter()
        self.loaded = 0

    def words_of(self, *settings: int) -> list[str]:
        """The command for some of the settings."""
        own = [word for setting in settings for word in OWN.get(setting, [])]
        words = [*self.options, *CELLS, *own, "--output_dir", str(self.folder / TEMPLATE)]
        return [*words, "--settings", *map(str, settings)]


@pytest.fixture(scope="module")
def sweep(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    made = Sweep(options, tmp_path_factory.mktemp("sweep"))
    compress, load = CompressibleModel.compress_again, llm_run.load_model

    def counted(self: CompressibleModel, cell: dict, *more: object) -> dict:
        made.compressed[cell["compression"], cell["seed"]] += 1
        return compress(self, cell, *more)

    def load_model(args: object) -> object:
        made.loaded += 1
        return load(args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompressibleModel, "compress_again", counted)
        patch.setattr(llm_run, "load_model", load_model)
        patch.setenv("XDG_CACHE_HOME", str(made.folder.parent / "cache"))
        assert setting2_option_count.main(made.words) == 0
    return made


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_run, "load_model", lambda args: pytest.fail("a model was loaded"))


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / run_folder.RESULT_FILE).read_text())


def assert_same_outcome(one: Path, other: Path) -> None:
    """All scores and all items are equal, to the last bit."""
    assert read(one)["levels"] == read(other)["levels"]
    first, second = run_folder.read_items(one), run_folder.read_items(other)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def error_of(main: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_every_model_is_made_once_for_all_settings(sweep: Sweep):
    assert sweep.loaded == 1
    assert sweep.compressed == {("dense", 0): 1, ("magnitude", 0): 1, ("wanda", 0): 1, ("wanda", 1): 1}


def test_every_key_of_a_result_is_explained(sweep: Sweep):
    assert_keys_are_told(sweep.folder)


def test_the_runs_of_a_model_that_was_made_once_all_have_the_seconds_that_it_took(sweep: Sweep):
    seconds: dict[tuple, set[float]] = {}
    for path in sweep.folder.rglob(run_folder.RESULT_FILE):
        run = read(path.parent)
        made = run["compression"], run["seed"] * (run["compression"] == "wanda")
        seconds.setdefault(made, set()).add(run["compress_seconds"])
    assert {made for made, own in seconds.items() if len(own) == 1} == set(sweep.compressed)
    assert {made for made, own in seconds.items() if min(own) > 0} == set(sweep.compressed) - {("dense", 0)}


def test_a_sweep_has_the_runs_of_every_setting(sweep: Sweep):
    """The seed changes the questions of 2, 3 and 4, and wanda's calibration text."""
    found = {tuple(path.parent.relative_to(sweep.folder).parts) for path in sweep.folder.rglob(run_folder.RESULT_FILE)}
    assert found == {
        (setting, compression, strength, seed)
        for setting in "23456"
        for compression, strength in (("dense", "dense"), ("magnitude", "0.5"), ("wanda", "0.5"))
        for seed in "01"
        if seed == "0" or setting in "234" or compression == "wanda"
    }


@pytest.mark.slow
def test_two_processes_measure_what_one_does(sweep: Sweep, tmp_path: Path):
    """All settings over two processes, ragged ends included; what fails in one of them fails one run, and no other."""
    words = [*sweep.options, *SWEEP, "--output_dir", str(tmp_path / TEMPLATE)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, str(ROOT / "tests" / "processes_worker.py"), *words], text=True,
                          capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 1, done.stderr
    folders = [path.parent.relative_to(sweep.folder) for path in sweep.folder.rglob(run_folder.RESULT_FILE)]
    missing = [folder for folder in folders if not run_folder.is_complete(tmp_path / folder)]
    assert len(missing) == 1, done.stderr
    said = run_folder.read_failure(tmp_path / missing[0])["error"]
    assert said == "RuntimeError: process 1 of the job failed: the model's logits are NaN, here alone"
    for folder in set(folders) - set(missing):
        assert_same_outcome(sweep.folder / folder, tmp_path / folder)
        assert read(sweep.folder / folder)["measured_sparsity"] == read(tmp_path / folder)["measured_sparsity"]
    recorded = json.loads((tmp_path / folders[0] / run_folder.ARGUMENTS_FILE).read_text())["environment"]
    assert recorded["num_processes"] == 2 and recorded["dtype"] == "torch.float32"


def test_a_model_in_parts_measures_the_same(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hooks that --device_map puts on every block, here with one device, and a model that says it has two."""
    load = llm_run.load_model

    def load_spread(source: ModelSource) -> PreTrainedModel:
        model = load(source)
        blocks = [f"model.layers.{index}" for index in range(len(model.model.layers))]
        parts = ["model.embed_tokens", "model.rotary_emb", *blocks, "model.norm", "lm_head"]
        dispatch_model(model, dict.fromkeys(parts, "cpu"), force_hooks=True)
        model.hf_device_map = dict.fromkeys(parts[:2], 0) | dict.fromkeys(parts[2:], 1)
        return model

    monkeypatch.setattr(llm_run, "load_model", load_spread)
    words = [*sweep.options, *OWN[6], "--settings", "2", "6", "--compression", "dense", "wanda", "--sparsity", "0.5"]
    words += ["--device_map", "auto", "--output_dir", str(tmp_path / TEMPLATE)]
    assert setting2_option_count.main(words) == 0
    folders = [path.parent.relative_to(tmp_path) for path in tmp_path.rglob(run_folder.RESULT_FILE)]
    assert len(folders) == 4
    for folder in folders:
        one, other = (run_folder.read_items(tree / folder) for tree in (sweep.folder, tmp_path))
        for name in one:
            if name.endswith("log_likelihood"):
                np.testing.assert_allclose(one[name], other[name], atol=1e-4)
            else:
                assert np.array_equal(one[name], other[name])


def test_the_runs_say_what_was_asked(sweep: Sweep):
    rows = run_folder.read_runs(sweep.folder)
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["compression"] == "dense" and row["seed"] == 0:
            found.setdefault((row["setting"], row["task"]), []).append(row)
    assert {key: [row["level"] for row in own] for key, own in found.items()} == {
        (2, "option_count"): ["2 options", "3 options", "4 options", "4 options, untouched"],
        (3, "context_length"): ["40 %", "100 %", "closed book"],
        (4, "k_shot"): ["5 shots", "3 shots", "1 shot", "0 shots"],
        (5, "human_gap"): ["PIQA", "HellaSwag", "OpenBookQA"],
        (6, "factoid_vs_mcq"): ["MMLU (choice)", "WebQuestions (factoid)"],
    }
    assert [row["chance"] for row in found[2, "option_count"]] == pytest.approx([1 / 2, 1 / 3, 1 / 4, 1 / 4])
    assert [row["reader"] for row in found[6, "factoid_vs_mcq"]] == ["letter", "answer"]
    assert [row["chance"] for row in found[6, "factoid_vs_mcq"]] == [1 / 4, 0]
    assert [row["human"] for row in found[5, "human_gap"]] == [0.95, 0.956, 0.92]
    # 18 questions of MMLU; the text of the eighth of SQuAD's holds no answer.
    assert {row["num_examples"] for row in found[4, "k_shot"]} == {18}
    assert {row["num_examples"] for row in found[3, "context_length"]} == {7}
    assert {row["facts"]["context_without_answer"] for row in found[3, "context_length"]} == {1}
    assert {row["measured_sparsity"] for row in rows} == {0.0, 0.5}
    assert all(row["tokens_computed"] >= row["tokens_distinct"] > 0 for row in rows)


def test_runs_hold_their_items_in_one_form(sweep: Sweep):
    for row in run_folder.read_runs(sweep.folder):
        items = run_folder.read_items(Path(row["folder"]))
        own = items["level"] == row["level_index"]
        assert own.sum() == row["num_examples"] == len(set(items["item"][own]))
        assert items["score"][own].mean() == pytest.approx(row["score"])
        if row["setting"] in (2, 4):
            assert set(items["group"][own]) == set(SUBJECTS)


def test_the_tables_pair_compressed_with_dense(sweep: Sweep):
    rows = run_folder.read_runs(sweep.folder)
    table = level_table(rows)
    assert len(table) == (4 + 3 + 4 + 3 + 2) * 3
    by_score = {(row["setting"], row["level"], row["compression"], row["seed"]): row["score"] for row in rows}
    for point in table:
        key = (point["setting"], point["level"], point["compression"])
        seeds = (0, 1) if point["setting"] in (2, 3, 4) or point["compression"] == "wanda" else (0,)
        assert point["seeds"] == seeds
        assert point["mean_score"] == pytest.approx(np.mean([by_score[*key, seed] for seed in seeds]))
        if point["compression"] != "dense":
            assert point["paired_items"] == point["num_examples"] and point["unpaired_items"] == 0
            assert point["points_drop"] == pytest.approx(point["mean_score"] - point["dense_mean_score"])


def test_complete_runs_are_skipped(sweep: Sweep, no_model: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluation, "encode_levels", None)  # their data are not prepared either
    assert setting2_option_count.main(sweep.words) == 0
    assert setting5_human_gap.main([*sweep.words, "--tokens_per_batch", "64"]) == 0


def test_tokens_computed_at_once_follow_the_device():
    for device, default in [("cpu", 2048), ("cuda", 4096)]:
        for asked, expected in [(None, default), (3000, 3000)]:
            assert option_values.tokens_per_batch(asked, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("device", "threads", "asked", "expected"),
    [
        ("cpu", 1, None, 2048),
        ("cpu", 3, None, 3072),
        ("cpu", 64, None, 8192),
        ("cpu", 64, 3000, 3000),
        ("cuda", 64, None, 4096),
    ],
)
def test_tokens_scored_at_once_follow_the_threads(
    device: str, threads: int, asked: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert option_values.tokens_scored_at_once(asked, torch.device(device)) == expected


def test_settings_obey_their_own_options_alone(sweep: Sweep, no_model: None, capsys: pytest.CaptureFixture):
    for setting, words, told in [
        (3, ["--option_counts", "2", "3"], "--option_counts is obeyed by setting 2; asked for is setting 3"),
        (2, ["--shots", "0", "2"], "--shots is obeyed by setting 4; asked for is setting 2"),
        (4, ["--context_tokens", "768"], "--context_tokens is obeyed by setting 3"),  # the default, but typed
        (2, ["--length_normalized"], "--length_normalized is obeyed by --answer_mode cloze; asked for is setting 2"),
    ]:
        assert told in error_of(SCRIPTS[setting].main, [*sweep.words_of(setting), *words], capsys)
    # What one of several settings obeys is no matter of the others.
    for more in (["--shots", "0", "1", "3", "5"], ["--answer_mode", "letter"]):
        assert setting4_k_shot.main([*sweep.words_of(3, 4), *more, "--list_cells", "--overwrite"]) == 0
    capsys.readouterr()
    message = error_of(setting2_option_count.main, [*sweep.words, "--option_counts", "2", "3"], capsys)
    assert "holds a run with other arguments (option_counts: [2, 3] here, [2, 3, 4] there)" in message
    for setting, word, value, told in [
        (3, "--max_new_tokens", "9", "max_new_tokens: 9 here, 3 there"),
        (4, "--shots", "5", "shots: [5] here, [0, 1, 3, 5] there"),
        (5, "--tasks", "piqa", "tasks: ['piqa'] here, ['piqa', 'hellaswag', 'openbookqa'] there"),
        (5, "--eval_split", "piqa=validation", "eval_split: ['piqa=validation'] here, None there"),
        (6, "--num_shots", "2", "num_shots: 2 here, 5 there"),
        (6, "--max_items", "2", "max_items: 2 here, None there"),
        (2, "--overflow", "skip", "overflow: 'skip' here, 'drop_shots' there"),
    ]:
        words = [*sweep.words_of(setting), word, value]
        assert told in error_of(SCRIPTS[setting].main, words, capsys)


def test_newer_options_are_no_part_of_what_a_run_is_called_without_them(
    sweep: Sweep, no_model: None, capsys: pytest.CaptureFixture
):
    """So runs from before there was --chat_template or --eval_split stay complete."""
    for run in ("2/dense/dense/0", "5/dense/dense/0"):
        recorded = json.loads((sweep.folder / run / run_folder.ARGUMENTS_FILE).read_text())["arguments"]
        older = {name: value for name, value in recorded.items() if name not in ("chat_template", "eval_split")}
        assert records.differences(recorded, older) == []
        assert records.recipe(recorded) == records.recipe(older)
    message = error_of(setting2_option_count.main, [*sweep.words, "--chat_template"], capsys)
    assert "holds a run with other arguments (chat_template: True here, None there)" in message


def test_every_prompt_stands_in_the_chat_template(
    options: list[str], reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = shutil.copytree(reader, tmp_path / "reader")
    (model / "chat_template.jinja").write_text(
        "{% for message in messages %}sky {{ message['content'] }} sea{% endfor %}"
    )
    measured, measure = [], llm_run.measure
    monkeypatch.setattr(llm_run, "measure", lambda *given: measured.extend(given[2]) or measure(*given))
    words = ["--model_name_or_path", str(model), "--settings", "3", "6", "--chat_template", *OWN[3], *OWN[6]]
    setting6_factoid_vs_mcq.main([*options, *words, "--output_dir", str(tmp_path / "runs" / TEMPLATE)])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    contexts = [context for encoded in measured for context in encoded.contexts]
    assert all(tokenizer.decode(context).split()[0 :: len(context) - 1] == ["sky", "sea"] for context in contexts)
    found = [point["reader"] for point in level_table(run_folder.read_runs(tmp_path / "runs"))]
    assert found == [*["answer in the chat template"] * 3, "letter in the chat template", "answer in the chat template"]


def test_other_data_are_another_run(
    sweep: Sweep, data_dir: Path, tmp_path: Path, no_model: None, capsys: pytest.CaptureFixture
):
    shutil.copytree(data_dir, tmp_path / "same")
    assert setting5_human_gap.main([*sweep.words_of(5), "--data_dir", str(tmp_path / "same")]) == 0
    rows = data_sets()["piqa/validation"]
    write(tmp_path / "same/piqa/validation.jsonl", rows[:-1])
    message = error_of(setting5_human_gap.main, [*sweep.words_of(5), "--data_dir", str(tmp_path / "same")], capsys)
    assert "(data_content_sha256: " in message and message.count(" here, ") == 1


def test_listed_cells_are_the_sweeps_own(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(sys, "argv", ["llm_tasks/setting2_option_count.py"])
    assert setting2_option_count.main([*sweep.words, "--list_cells"]) == 0
    commands = [shlex.split(line)[2:] for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == 26
    with monkeypatch.context() as patch:
        patch.setattr(llm_run, "load_model", lambda args: pytest.fail("a model was loaded"))
        for command in commands[::3]:
            assert setting2_option_count.main(command) == 0
    folders = {Path(own[own.index("--output_dir") + 1]): own for own in commands}
    for setting in ("4", "5"):  # and alone they come to the same
        run, alone = sweep.folder / setting / "wanda/0.5/1", tmp_path / setting
        assert setting2_option_count.main([*folders[run], "--output_dir", str(alone)]) == 0
        assert_same_outcome(alone, run)


@pytest.mark.slow
def test_one_model_for_several_seeds_needs_no_dense_copy(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Magnitude does not depend on the seed: its weights are made once and never put back."""
    made = []
    init = CompressibleModel.__init__
    monkeypatch.setattr(
        CompressibleModel, "__init__", lambda self, *args, **more: (made.append(more), init(self, *args, **more))[1]
    )
    words = ["--compression", "magnitude", "--sparsity", "0.5", "--seed", "0", "1", "--settings", "2", "4"]
    assert setting2_option_count.main([*sweep.options, *words, "--output_dir", str(tmp_path / TEMPLATE)]) == 0
    assert [more["keep_dense"] for more in made] == [False]
    for setting in "24":
        for seed in "01":
            own = f"{setting}/magnitude/0.5/{seed}"
            assert_same_outcome(tmp_path / own, sweep.folder / own)


def test_every_option_belongs_to_a_setting():
    """One that no setting names would tell the runs of all of them apart."""
    alone = (own_setting.SETTING, perplexity_setting.SETTING)
    for settings in (SETTINGS, *({setting.name: setting} for setting in alone)):
        own = next(iter(settings))
        known = {action.dest for action in llm_options.make_parser("", settings, own)._actions}
        for setting in settings.values():
            declared = set(setting.options)
            assert declared <= set(setting.obeys) <= known
            read = {field.name for field in dataclasses.fields(setting.values)} - {"typed", "max_length"}
            assert declared <= read <= known


@pytest.mark.parametrize("streamed", [[], *slow_cases(["--stream"])])
def test_a_result_that_goes_away_during_a_sweep_is_made_again(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: list[str]
):
    """Its setting's data, calibration windows and fast paths were not needed at the start."""
    words = [*options, *streamed, "--compression", "wanda", "--sparsity", "0.5"]
    words += ["--output_dir", str(tmp_path / "{setting}")]
    assert setting4_k_shot.main([*words, "--settings", "4"]) == 0
    before, measure_model = read(tmp_path / "4"), llm_run.measure_model

    def take_away(*words: Any) -> Any:
        (tmp_path / "4" / run_folder.RESULT_FILE).unlink(missing_ok=True)
        return measure_model(*words)

    monkeypatch.setattr(llm_run, "measure_model", take_away)
    assert setting4_k_shot.main([*words, "--settings", "2", "4"]) == 0
    assert read(tmp_path / "4")["levels"] == before["levels"]


@pytest.mark.slow
def test_a_small_run_takes_a_short_way(reader: Path, data_dir: Path, tmp_path: Path):
    """Of 47 files 22 are of harness, pruning and analysis; before there were stages it was 44 files and 106 pairs.

    37 and 78 before the run also planned its memory (resources.py) and selected weights without a copy (selection.py);
    39 and 85 before options and the values made of them (option_values.py) were two files; 40 and 90 before a cell's
    compression could be two methods in a row (compressions.py), of some layers (layer_options.py, shares.py,
    layer_choice.py, compressing.py), or made elsewhere (checkpoint_files.py, checkpoints.py, origin.py); 45 and 110
    before chance was the same rule in every room (harness/choices.py), and gates had a number of their own; 114 before
    data folders were refused by one rule (check_data_dir), an option's obedience was one rule (options.is_obeyed), and
    what a cell compresses was checked (pruning/validation.py).
    """
    words = ["--model_name_or_path", str(reader), "--data_dir", str(data_dir), "--compression", "dense", "magnitude"]
    words += ["--sparsity", "0.5", "--output_dir", str(tmp_path / "{compression}")]
    path = count_path(setting2_option_count.main, words)
    assert len(path.files) <= 47 and len(path.pairs) <= 117, "\n".join(map(" -> ".join, sorted(path.pairs)))


def test_freebaseqa_as_its_authors_publish_it(options: list[str], tmp_path: Path):
    parses = [{"Answers": [{"AnswersName": ["red"]}]}]
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({"Questions": [{"RawQuestion": f"what is {word}", "Parses": parses} for word in WORDS]}))
    words = [*options, *OWN[6], "--factoid_dataset", "freebaseqa", "--factoid_file", str(path), "--output_dir"]
    assert setting6_factoid_vs_mcq.main([*words, str(tmp_path / "run")]) == 0
    assert [level["level"] for level in read(tmp_path / "run")["levels"]] == ["MMLU (choice)", "FreebaseQA (factoid)"]
    assert [level["num_examples"] for level in read(tmp_path / "run")["levels"]] == [18, len(WORDS)]
    metrics = read(tmp_path / "run")["levels"][1]["metrics"]
    assert {"exact_match", "em_original", "freebaseqa_original", "empty"} <= metrics.keys()


def one_at_a_time(
    model: PreTrainedModel, continuations: Sequence[Continuation], tokens_per_batch: int, precision: str, share: bool,
    processes: Processes, storage: None, greedy: bool,
) -> Scores:  # fmt: skip
    """Each text by itself, whole."""
    totals, firsts = [], []
    for tokens, start in continuations:
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, start - 1 : -1]
        targets = torch.tensor(tokens[start:])[:, None]
        totals.append(float(logits.log_softmax(dim=-1).gather(1, targets).sum()))
        firsts.append(int(logits[0].argmax()))
    return Scores(np.array(totals), np.array(firsts), Work(1, 1))


@pytest.mark.parametrize("mode", ["letter", *slow_cases("generate", "cloze")])
def test_answers_are_read_as_asked_and_like_one_by_one(
    mode: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Settings with options take every mode, chance with it; sharing and batching change no choice."""
    words = [*options, *OWN[6], "--settings", "2", "4", "6", "--answer_mode", mode, "--max_items", "4", "--output_dir"]
    assert setting2_option_count.main([*words, str(tmp_path / "shared/{setting}")]) == 0
    monkeypatch.setattr(evaluation, "log_likelihoods", one_at_a_time)
    assert setting2_option_count.main([*words, str(tmp_path / "apart/{setting}")]) == 0
    for setting in "246":
        shared, apart = tmp_path / "shared" / setting, tmp_path / "apart" / setting
        assert read(shared)["levels"] == read(apart)["levels"]
        for level in read(shared)["levels"]:
            is_factoid = "factoid" in level["level"]
            num_options = level["difficulty"] if setting == "2" else 4
            assert level["reader"] == ("answer" if is_factoid else mode)
            assert level["chance"] == pytest.approx(0 if is_factoid or mode == "generate" else 1 / num_options)
        first, second = run_folder.read_items(shared), run_folder.read_items(apart)
        for name in first:
            if name.endswith("log_likelihood"):
                np.testing.assert_allclose(first[name], second[name], atol=1e-4)
            else:
                assert np.array_equal(first[name], second[name])


def test_a_seed_draws_other_questions(sweep: Sweep):
    """Setting 2: other distractors in other places; the untouched questions are the same."""
    one, two = (run_folder.read_items(sweep.folder / "2/dense/dense" / seed) for seed in "01")
    assert not np.array_equal(one["level2_gold"], two["level2_gold"])
    assert np.array_equal(one["level3_gold"], two["level3_gold"])
    np.testing.assert_allclose(one["level3_option_log_likelihood"], two["level3_option_log_likelihood"], atol=1e-5)


def test_a_dense_model_at_chance_is_logged_loudly(options: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Each question stands there in both orders, of which one is right, so that half are whatever the model says."""
    piqa = data_sets()["piqa/validation"]
    rows = [own for row in piqa for own in (row, {**row, "sol1": row["sol2"], "sol2": row["sol1"]})]
    write(tmp_path / "data/piqa/validation.jsonl", rows)
    words = [*options, "--tasks", "piqa", "--data_dir", str(tmp_path / "data"), "--compression", "dense", "magnitude"]
    words += ["--sparsity", "0.9", "--output_dir", str(tmp_path / "{compression}")]
    with caplog.at_level(logging.WARNING):
        assert setting5_human_gap.main(words) == 0
    (told,) = (record.getMessage() for record in caplog.records if "CHANCE" in record.getMessage())
    assert told == (
        "SETTING 5, PIQA: THE DENSE MODEL IS NOT ABOVE CHANCE (0.500, standard error 0.121, chance 0.500): "
        "its drops mean nothing"  # sqrt(0.25 / 17)
    )
    table = level_table(run_folder.read_runs(tmp_path))
    assert [point["dense_above_chance"] for point in table] == [False, False]


def shorter(reader: Path, folder: Path, max_length: int) -> Path:
    shutil.copytree(reader, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": max_length}))
    return folder


def test_prompts_longer_than_the_model(
    reader: Path, options: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
):
    """A question with its options has 22 to 24 tokens behind a header of 13, an example two or three more."""
    words = [*options, "--model_name_or_path", str(shorter(reader, tmp_path / "model", 100)), "--shots", "0", "5"]
    with caplog.at_level(logging.INFO):
        assert setting4_k_shot.main([*words, "--output_dir", str(tmp_path / "run")]) == 0
    many, none = read(tmp_path / "run")["levels"]
    assert (many["facts"]["shortened"], none["facts"]["shortened"]) == (18, 0)
    assert many["num_examples"] == none["num_examples"] == 18
    assert "setting 4, 5 shots (mmlu, letter): 18 items, shortened: 18" in caplog.text
    message = error_of(
        setting4_k_shot.main, [*words, "--overflow", "skip", "--output_dir", str(tmp_path / "skip")], capsys
    )
    assert (
        "level '5 shots' of mmlu: none of its 18 prompts fits into the 100 tokens that the model takes "
        "(--overflow skip)"
    ) in message


BAD = [
    (2, ["--settings", "77"], "invalid choice: 77"),
    (2, ["--settings", "2", "5"], "add {setting}"),
    (2, ["--settings", "2", "5", "--output_dir", "{level}"], "{level} is no placeholder"),
    (2, ["--option_counts", "5"], "--option_counts 5: the questions have 4 options at most"),
    (2, ["--option_counts", "1"], "1 is outside [2, 26]"),
    (2, ["--option_counts", "3", "3"], "--option_counts 3 3: a number is given twice"),
    (2, ["--num_shots", "6"], "6 is outside [0, 5]"),
    (2, ["--subjects", "chess"], "--subjects chess: there are large_sums, small_sums"),
    (2, ["--answer_mode", "text"], "argument --answer_mode: invalid choice: 'text'"),
    (2, ["--overflow", "cut"], "argument --overflow: invalid choice: 'cut'"),
    (3, ["--overflow", "truncate_left"], "--overflow truncate_left could cut the answer's sentence"),
    (2, ["--max_items", "0"], "0 is outside [1,"),
    (2, ["--chat_template"], "--chat_template: the tokenizer of "),
    (2, ["--chat_template", "--overflow", "truncate_left"], "--overflow truncate_left would cut the template"),
    (2, ["--stream", "--weights", "bin"], "--stream reads safetensors tensor by tensor"),
    (2, ["--task_file", "mine.jsonl"], "unrecognized arguments: --task_file"),
    (2, ["--data_dir", "/nowhere"], "--data_dir /nowhere is no folder"),
    (2, ["--sparsity", "0.5"], "asked for is dense"),
    (3, ["--context_dataset", "quac"], "argument --context_dataset: invalid choice: 'quac'"),
    (3, ["--context_dataset", "triviaqa"], "has no trivia_qa/rc/validation.jsonl"),
    (3, ["--context_shares", "0"], "0 is outside [1, 100]"),
    (3, ["--context_shares", "20", "20"], "--context_shares 20 20: a number is given twice"),
    (3, ["--max_new_tokens", "400"], "the 320 tokens that the model takes, 400 of them for the answer"),
    (3, ["--min_new_tokens", "4"], "--min_new_tokens 4: allowed up to --max_new_tokens 3"),
    (3, ["--answer_metric", "rouge"], "argument --answer_metric: invalid choice: 'rouge'"),
    (4, ["--shots", "0", "6"], "--shots 6: the dev split has 5 example(s) of the subject"),
    (4, ["--shots", "1", "1"], "--shots 1 1: a number is given twice"),
    (4, ["--shot", "1"], "unrecognized arguments"),
    (5, ["--tasks", "piqa", "siqa"], "argument --tasks: invalid choice: 'siqa'"),
    (5, ["--tasks", "boolq"], "has no boolq/validation.jsonl"),
    (5, ["--eval_split", "test"], f"'test' is not TASK=SPLIT or TASK=SPLIT+SPLIT with a task of {', '.join(TASKS)}"),
    (5, ["--eval_split", "siqa=test"], "'siqa=test' is not TASK=SPLIT"),
    (5, ["--eval_split", "piqa=test+"], "'piqa=test+' is not TASK=SPLIT"),
    (5, ["--eval_split", "piqa=test+test"], "'piqa=test+test' names a split twice"),
    (5, ["--eval_split", "boolq=train"], "--eval_split: boolq is not in --tasks piqa hellaswag openbookqa"),
    (5, ["--eval_split", "piqa=validation", "piqa=test"], "a task is given twice; join its splits with +"),
    (5, ["--eval_split", "piqa=validation+train"], "has no piqa/train.jsonl"),
    (6, ["--factoid_dataset", "trivia"], "argument --factoid_dataset: invalid choice: 'trivia'"),
    (6, ["--factoid_dataset", "nq_open"], "has no nq_open/validation.jsonl"),
    (6, ["--factoid_file", "/nowhere.json"], "--factoid_file: there is no file /nowhere.json"),
]


@pytest.mark.parametrize(
    ("setting", "words", "message"), BAD, ids=[f"{setting} {' '.join(words)}" for setting, words, _ in BAD]
)
def test_bad_options_are_one_clear_error_before_a_model_loads(
    setting: int, words: list[str], message: str, options: list[str], tmp_path: Path, no_model: None,
    capsys: pytest.CaptureFixture,
):  # fmt: skip
    argv = [*options, *OWN.get(setting, []), "--output_dir", str(tmp_path / "run"), *words]
    assert message in error_of(SCRIPTS[setting].main, argv, capsys)
    assert not (tmp_path / "run").exists()


BAD_DATA = [
    (2, "mmlu/test", {"choices": None}, "mmlu/test.jsonl, line 2 lacks the field 'choices'; it has question, subject"),
    (4, "mmlu/dev", {"answer": None}, "mmlu/dev.jsonl, line 2 lacks the field 'answer'"),
    (2, "mmlu/test", {"answer": 4}, "mmlu/test.jsonl, line 2: 'answer' 4 is not among the 4 options"),
    (4, "mmlu/test", {"answer": "E"}, "line 2: 'answer' 'E' is not among the 4 options"),
    (6, "mmlu/test", {"choices": ["one"]}, "line 2: 'choices' is no list of 2 to 26 options"),
    (4, "mmlu/test", {"subject": "chess"}, "--shots 5: the dev split has 0 example(s) of the subject chess"),
    (2, "mmlu/test", {"subject": "chess"}, "--num_shots 5: the dev split has 0 example(s) of the subject chess"),
    (5, "piqa/validation", {"label": 2}, "piqa/validation.jsonl, line 2: 'label' is 2; allowed: 0, 1"),
    (5, "piqa/validation", {"label": -1}, "the split 'validation' must have labels"),
    (5, "piqa/validation", {"goal": ""}, "line 2: 'goal' is empty"),
    (5, "hellaswag/validation", {"label": "4"}, "hellaswag/validation.jsonl, line 2: 'label' is '4'; allowed: 0, 1, 2"),
    (5, "openbookqa/test", {"answerKey": "E"}, "openbookqa/test.jsonl, line 2: 'answerKey' is 'E'; allowed: A, B, C"),
    (3, "squad/validation", {"context": None}, "squad/validation.jsonl, line 2 lacks the field 'context'"),
    (3, "squad/validation", {"answers": {"text": []}}, "line 2: 'answers' holds no text"),
    (6, "web_questions/test", {"answers": []}, "web_questions/test.jsonl, line 2: 'answers' holds no text"),
    (6, "web_questions/test", {"answers": "red"}, "line 2: 'answers' is no list of texts but str"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "name", "change", "message"), BAD_DATA, ids=[f"{own[0]} {own[1]} {own[2]}" for own in BAD_DATA]
)
def test_bad_rows_name_file_line_and_field_before_a_model_loads(
    setting: int, name: str, change: dict[str, Any], message: str, options: list[str], data_dir: Path, tmp_path: Path,
    no_model: None, capsys: pytest.CaptureFixture,
):  # fmt: skip
    """The second row is changed; a field that becomes None is left out."""
    folder = tmp_path / "data"
    shutil.copytree(data_dir, folder)
    first, second, *rest = data_sets()[name]
    changed = {field: value for field, value in {**second, **change}.items() if value is not None}
    write(folder / f"{name}.jsonl", [first, changed, *rest])
    argv = [*options, *OWN.get(setting, []), "--data_dir", str(folder), "--output_dir", str(tmp_path / "run")]
    assert message in error_of(SCRIPTS[setting].main, argv, capsys)


def test_a_hub_that_cannot_be_reached_says_what_to_do(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_model: None, capsys: pytest.CaptureFixture
):
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "dataset_info", load_dataset)
    at = options.index("--data_dir")
    words = [*options[:at], *options[at + 2 :], "--output_dir", str(tmp_path / "run")]
    for setting, name in [(2, "mmlu/test"), (3, "squad/validation"), (5, "piqa/validation")]:
        message = error_of(SCRIPTS[setting].main, [*words, *OWN.get(setting, [])], capsys)
        assert message.endswith(f": no route; without a hub, give --data_dir DIR with {name}.jsonl")


def test_data_that_cannot_be_used_at_all(
    options: list[str], tmp_path: Path, no_model: None, capsys: pytest.CaptureFixture
):
    words = [*options, "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "run")]
    assert "it has no data set" in error_of(setting5_human_gap.main, words, capsys)
    rows = data_sets()["squad/validation"]
    write(tmp_path / "squad/validation.jsonl", rows[-1:])
    message = error_of(setting3_context_length.main, [*words, *OWN[3]], capsys)
    assert "squad: none of the 1 contexts contains an answer to its question" in message
    (tmp_path / "squad/validation.jsonl").write_text('{"question": \n')
    assert "line 1 is not one JSON object" in error_of(setting3_context_length.main, [*words, *OWN[3]], capsys)
    (tmp_path / "squad/validation.jsonl").write_text("\n")
    assert "squad/validation.jsonl holds no rows" in error_of(setting3_context_length.main, [*words, *OWN[3]], capsys)
    referring = {**mmlu_rows(1, 0)[0], "choices": ["red", "blue", "both", "all of the above"]}
    write(tmp_path / "mmlu/test.jsonl", [referring])
    write(tmp_path / "mmlu/dev.jsonl", mmlu_rows(5, 0))
    message = error_of(setting2_option_count.main, words, capsys)
    assert "--option_counts 4: of 1 question(s) none is left: options_refer_to_others 1" in message


CHOICE = {"question": "what is red", "choices": ["sky", "stone", "tree"], "answer": "B"}
ANSWER = {"question": "what is blue", "answers": ["sky", "the sea"]}


@pytest.fixture
def own(reader: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of own_task on these rows."""

    def words(*rows: dict[str, Any]) -> list[str]:
        path = write(tmp_path / "mine.jsonl", list(rows))
        return [
            "--model_name_or_path", str(reader), "--task_file", str(path), "--precision", "no",
            *(["--max_new_tokens", "3"] if "answers" in rows[0] else []),
            "--output_dir", str(tmp_path / "{compression}/{strength}"),
        ]  # fmt: skip

    return words


def test_an_own_task_of_choices_in_levels(
    own: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    rows = [{**CHOICE, "choices": ["sky", "stone", f"tree {place}"], "level": place % 2 + 1,
             "question": f"{CHOICE['question']} {word}"} for place, word in enumerate(WORDS)]  # fmt: skip
    words = [*own(*rows), "--compression", "dense", "magnitude", "--sparsity", "0.5", "--answer_mode", "cloze",
             "--length_normalized"]  # fmt: skip
    assert own_task.main(words) == 0
    runs = run_folder.read_runs(tmp_path)
    assert [(row["setting"], row["task"], row["level"], row["difficulty"]) for row in runs[:2]] == [
        ("own_task", "mine", "1", 1.0), ("own_task", "mine", "2", 2.0)
    ]  # fmt: skip
    assert {row["metric"] for row in runs} == {"accuracy_norm"} and {row["reader"] for row in runs} == {"cloze"}
    assert [row["chance"] for row in runs] == [pytest.approx(1 / 3)] * 4
    assert len(level_table(runs)) == 4
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(tmp_path / "mine.jsonl", tmp_path / "elsewhere")
    monkeypatch.setattr(llm_run, "load_model", lambda args: pytest.fail("the runs are complete"))
    assert own_task.main([*words, "--task_file", moved]) == 0  # its name and content tell it, not its folder
    capsys.readouterr()
    assert own_task.main([*words, "--list_cells"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 2
    for command in commands:
        assert own_task.main(shlex.split(command)[2:]) == 0


def test_an_item_too_long_for_the_model_is_left_out_and_told(
    own: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """With a text of 400 words it is too long at level 1, and gone at level 2 too."""
    rows = [{**CHOICE, "question": word, "level": level} for level in (1, 2) for word in WORDS]
    rows[3]["context"] = "red " * 400
    with caplog.at_level(logging.INFO):
        assert own_task.main(own(*rows)) == 0
    for level in read(tmp_path / "dense/dense")["levels"]:
        assert level["num_examples"] == len(WORDS) - 1
        assert level["facts"] == {"shortened": 0, "skipped_too_long": 1}
    assert "setting own_task, 2 (mine, letter): 13 items, skipped as too long: 1" in caplog.text
    items = run_folder.read_items(tmp_path / "dense/dense")["item"]
    assert items[:13].tolist() == items[13:].tolist() and len(items) == 26


def test_an_own_task_of_answers(own: Callable[..., list[str]], tmp_path: Path):
    rows = [{**ANSWER, "question": f"{ANSWER['question']} {word}", "context": "The sky."} for word in WORDS]
    assert own_task.main([*own(*rows), "--task_name", "colours", "--answer_metric", "f1"]) == 0
    (run,) = run_folder.read_runs(tmp_path)
    assert (run["task"], run["dataset"], run["reader"], run["metric"], run["chance"]) == (
        "colours", "colours", "answer", "f1", 0.0
    )  # fmt: skip
    assert run["metrics"].keys() == {"exact_match", "contains", "f1", "em_original", "empty"}
    assert run["facts"]["context_without_answer"] == 0


def test_a_bad_own_task_is_refused_before_a_model_loads(
    own: Callable[..., list[str]], tmp_path: Path, no_model: None, capsys: pytest.CaptureFixture
):
    def message(words: list[str]) -> str:
        return error_of(own_task.main, words, capsys)

    assert "mine.jsonl, line 2 has 'answers', " in message(own(CHOICE, ANSWER))
    assert "a file holds only one" in message(own(ANSWER, CHOICE))
    assert "line 1: 'answer' is 'red'; allowed: the text of a choice" in message(own({**CHOICE, "answer": "red"}))
    assert "--answer_mode letter is for items with 'choices'" in message([*own(ANSWER), "--answer_mode", "letter"])
    assert "--task_file: there is no file /nowhere.jsonl" in message([*own(CHOICE), "--task_file", "/nowhere.jsonl"])
    assert f"--task_file: there is no file {tmp_path}" in message([*own(CHOICE), "--task_file", str(tmp_path)])
    assert "unrecognized arguments: --settings" in message([*own(CHOICE), "--settings", "2"])
    words = own(CHOICE)
    at = words.index("--task_file")
    assert "the following arguments are required: --task_file" in message(words[:at] + words[at + 2 :])
    assert "fits into the 320 tokens" in message(own({**CHOICE, "context": "red " * 400}))


# A process for every line that is read: imports take longer than the sweep.
STARTER = """
import os, sys
from llm_tasks import setting4_k_shot
for _ in sys.stdin:
    process = os.fork()
    if process == 0:
        os._exit(setting4_k_shot.main(sys.argv[1:]))
    print(process, flush=True)
    print(os.waitpid(process, 0)[1], flush=True)
"""


def finished_runs(folder: Path) -> dict[Path, int]:
    """When each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob(run_folder.RESULT_FILE)}


def kill_after(starter: subprocess.Popen, folder: Path, count: int, seconds: float) -> None:
    """Start the sweep, and kill -9 it some time after its folder has so many results."""
    starter.stdin.write("start\n")
    starter.stdin.flush()
    sweep, limit = int(starter.stdout.readline()), time.monotonic() + 180
    while len(finished_runs(folder)) < count:
        assert time.monotonic() < limit, "nothing happened in time"
        time.sleep(0.003)
    time.sleep(seconds)
    os.kill(sweep, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(int(starter.stdout.readline())) == -signal.SIGKILL


@pytest.mark.torture
def test_a_sweep_that_is_killed_again_and_again_equals_one_that_is_not(options: list[str], tmp_path: Path):
    """24 cells of three settings, killed anywhere behind the 4th, the 9th and the 14th of them."""
    cells = ["--settings", "4", "5", "6", *OWN[6], "--compression", "dense", "magnitude", "rtn", "--sparsity", "0.1",
             "0.3", "0.5", "0.7", "--bits", "8", "4", "2", "--group_size", "8", "--output_dir"]  # fmt: skip
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    words = [*options, *cells, str(killed / TEMPLATE)]
    draw, finished = random.Random(0), {}
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as starter:  # fmt: skip
        for count in (4, 9, 14):
            kill_after(starter, killed, count, draw.uniform(0, 0.06))
            found = finished_runs(killed)
            assert count <= len(found) < 24 and finished.items() <= found.items()
            finished = found
    assert setting4_k_shot.main(words) == 0
    assert finished.items() <= finished_runs(killed).items()
    assert setting4_k_shot.main([*words[:-1], str(whole / TEMPLATE)]) == 0
    paths = sorted(path.relative_to(whole) for path in whole.rglob(run_folder.RESULT_FILE))
    assert len(paths) == 24 and paths == sorted(
        path.relative_to(killed) for path in killed.rglob(run_folder.RESULT_FILE)
    )
    for path in paths:
        assert_same_outcome((killed / path).parent, (whole / path).parent)
    tables = [level_table(run_folder.read_runs(folder)) for folder in (killed, whole)]
    assert tables[0] == tables[1] and len(tables[0]) == 8 * (4 + 3 + 2)
    assert not run_folder.unfinished_runs(killed)
