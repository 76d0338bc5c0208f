import io
import json
import logging
import re

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import decoder_configs
from transformers import AutoModelForCausalLM

from GLUE_tasks import Glue_prune_oneshot
from harness import progress
from harness.progress import Progress
from llm_tasks.engine.greedy import AnswerEnd, greedy_answers
from llm_tasks.engine.log_likelihood import log_likelihoods
from llm_tasks.engine.packing import Continuation
from pruning.walk import compress_blocks


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch, caplog):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    caplog.set_level(logging.INFO)
    return clock


def test_a_log_gets_a_line_a_minute_with_what_is_left(clock, caplog):
    steps = iter(range(100))
    for _ in Progress(range(100), "train", detail=lambda: f"loss {next(steps)}"):
        clock.now += 25
    # 25 s a step: lines after 75, 150, ... s, as steps end
    assert len(caplog.messages) == 33
    assert caplog.messages[0] == "train: 3 of 100, loss 0, about 40:25 left"  # 97 steps of 25 s
    assert caplog.messages[1] == "train: 6 of 100, loss 1, about 39:10 left"


def test_short_work_says_nothing(clock, caplog):
    assert list(Progress(range(50), "evaluate")) == list(range(50))
    clock.now += 59
    with Progress(total=5, name="scoring") as told:
        told.update(5)
    assert caplog.messages == []


def test_what_an_earlier_attempt_did_counts_as_done_but_not_as_fast(clock, caplog):
    told = Progress(total=100, name="train", initial=90)
    clock.now += 60
    told.update(2)
    assert caplog.messages == ["train: 92 of 100, about 04:00 left"]  # 8 steps of 30 s


def test_work_of_unknown_length_and_quiet_work(clock, caplog):
    unknown = Progress((number for number in range(3)), "blocks")
    quiet = Progress(total=3, quiet=True)
    for _ in unknown:
        clock.now += 60
        quiet.update()
    assert caplog.messages == ["blocks: 1", "blocks: 2", "blocks: 3"]


def test_the_detail_is_computed_for_a_line_alone(clock, caplog):
    asked = []
    told = Progress(total=1000, name="train", detail=lambda: asked.append(1) or "loss")
    for _ in range(1000):
        told.update()
    clock.now += 60
    told.update(0)
    assert len(asked) == len(caplog.messages) == 1


def test_a_terminal_shows_a_bar_and_no_lines(clock, caplog, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    for _ in Progress(range(3), "train", detail=lambda: "loss 0.5"):
        clock.now += 70
    assert "train:" in terminal.getvalue() and "loss 0.5" in terminal.getvalue() and caplog.messages == []
    before = terminal.getvalue()
    assert list(Progress(range(3), "part", bar=False)) == [0, 1, 2]
    assert terminal.getvalue() == before


@pytest.mark.usefixtures("fresh_accelerator")
def test_training_and_evaluation_tell_steps_and_loss_and_come_to_the_same(
    tiny_encoder, sentence_files, tmp_path, caplog, monkeypatch
):
    caplog.set_level(logging.INFO)
    train, validation = map(str, sentence_files)
    argv = ["--model_name_or_path", str(tiny_encoder), "--train_file", train, "--validation_file", validation]
    argv += ["--max_length", "16", "--max_train_steps", "4", "--mixed_precision", "no", "--sparse_init", "dense"]
    scores = []
    for name, seconds in (("silent", 60), ("told", 0)):
        monkeypatch.setattr(progress, "LINE_SECONDS", seconds)
        caplog.clear()
        AcceleratorState._reset_state(reset_partial_state=True)
        assert Glue_prune_oneshot.main([*argv, "--output_dir", str(tmp_path / name)]) == 0
        found = json.loads((tmp_path / name / "all_results.json").read_text())
        scores.append({key: value for key, value in found.items() if key not in ("seconds", "memory")})
    told = [message for message in caplog.messages if message.startswith("train: ")]
    assert [re.match(r"train: \d of 4, loss \d\.\d{4}, about \d\d:\d\d left", line) is not None for line in told] == [
        True
    ] * 4
    losses = [float(re.search(r"loss ([\d.]+)", line)[1]) for line in told]
    assert sum(losses) / 4 == pytest.approx(scores[1]["train_loss"], abs=1e-4)  # each line is of its own step
    assert any(message.startswith("evaluate: 1 of ") for message in caplog.messages)
    assert scores[0]["train_loss"] == scores[1]["train_loss"] and scores[0]["levels"] == scores[1]["levels"]


def test_scoring_answers_and_calibration_tell_how_far_they_are(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    model = AutoModelForCausalLM.from_config(decoder_configs()["llama"]).eval()
    log_likelihoods(model, [Continuation((1, 2, number), 2) for number in range(3, 9)], 60)
    greedy_answers(model, [(1, 2), (3, 4)], AnswerEnd(2, lambda answer: False), 60)
    tokens = torch.randint(3, 40, (4, 8), generator=torch.Generator().manual_seed(0))
    compress_blocks(model, tokens, lambda matrix, statistics, name: matrix > 0, "sq_norms", tokens_per_batch=16)
    text = "\n".join(caplog.messages)
    for line in (
        r"scoring: 6 of 6", r"answers: 2 of 2", r"calibration of block 0: 1 of 2, about",
        r"weights of a block: 1 of \d", r"blocks: 1 of \d, about",
    ):  # fmt: skip
        assert re.search(rf"^{line}", text, re.MULTILINE), f"{line} not in {text}"
