"""Every causal architecture of transformers, tiny and random: we compute what plain forward passes do, or refuse.

    python -m pytest -m architectures -n 2 tests/test_architectures.py          # a quarter of an hour on two cores
    ARCHITECTURES_TABLE=table.jsonl python -m pytest -m architectures …         # also writes a line per architecture
    python tests/test_architectures.py table.jsonl                              # prints these lines as a table

Plain means one forward pass per sequence, without a cache, a mask or positions, and logits normalised in float32.
"""

import contextlib
import copy
import inspect
import json
import os
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    BOUNDARY,
    NOT_PACKED,
    REPRESENTATIVE,
    REPRESENTATIVE_IN_BF16,
    TOKENS,
    WINDOW,
    tiny_model,
)
from conftest import slow_cases
from plain_twins import plain_input_sq_norms, streamed_equals_memory, walked_input_sq_norms
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from llm_tasks.engine.greedy import AnswerEnd, greedy_answers
from llm_tasks.engine.log_likelihood import Scores, log_likelihoods
from llm_tasks.engine.packing import Continuation, Tokens, distinct_reads
from llm_tasks.engine.proof import scoring_ways
from pruning.layers import decoder_blocks

ROOT = Path(__file__).parents[1]
NATS = 1e-3  # by which float32 log-likelihoods may differ, and by which two logits count as equal
RELATIVE = 1e-3  # of a calibration statistic
BF16_TIMES, BF16_FLOOR = 2.0, 0.003  # of transformers' own mean distance from float32; nats
NEW_TOKENS = 6
SHIFTED = 8  # of so many tokens in turn none and all stand one place too far


@cache
def questions() -> tuple[Continuation, ...]:
    """Continuations that are planned in every way: nested prefixes, trees of options, and single texts of any length.

    Lengths lie on both sides of every window and boundary.
    """
    draw = random.Random(0)

    def text(length: int) -> Tokens:
        return tuple(draw.randrange(*TOKENS) for _ in range(length))

    letters = text(4)
    found = []

    def ask(context: Tokens, *options: Tokens) -> None:
        found.extend(Continuation(context + option, len(context)) for option in options)

    instruction = text(40)
    examples = instruction + text(60)
    for number in range(12):
        question = examples + text(14 + number)
        ask(question, *((letter,) for letter in letters))
        if number % 3 == 0:
            ask(question, text(3), text(5))
    for _ in range(6):
        ask(instruction + text(30), *((letter,) for letter in letters))
    around = (WINDOW, WINDOW + 1, BOUNDARY, BOUNDARY + 1)  # fed are one token less and one more
    for length in (2, 3, 7, *around, 128, 200, 257, 300):
        context = text(length - 1)
        ask(context, text(1), text(3))
    for length in (40, 100):
        found.append(Continuation(text(length), 1))
    draw.shuffle(found)
    return tuple(found)


@cache
def prompts() -> tuple[Tokens, ...]:
    """Prompts whose answers end on both sides of the window and of the boundary; some begin alike."""
    draw = random.Random(1)

    def text(length: int) -> Tokens:
        return tuple(draw.randrange(*TOKENS) for _ in range(length))

    shared = text(90)
    lengths = (3, WINDOW - 4, WINDOW + 2, BOUNDARY - 4, 256)
    return (*map(text, lengths), shared + text(20), shared + text(40))


@torch.no_grad()
def forget(model: PreTrainedModel) -> None:
    """Dynamic rotary embeddings remember the longest sequence that came before; a short one lets them forget it."""
    if any("dynamic" in str(getattr(module, "rope_type", "")) for module in model.modules()):
        model(torch.tensor([[TOKENS[0]]]), use_cache=False)


class Plain:
    """Logits of a model by one forward pass per sequence, in float32, each as the first of a fresh model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._logits: dict[Tokens, Tensor] = {}
        self._log_likelihoods: dict[Continuation, float] = {}

    @torch.no_grad()
    def logits(self, tokens: Tokens) -> Tensor:
        """(tokens, vocabulary)."""
        if tokens not in self._logits:
            forget(self._model)
            self._logits[tokens] = self._model(torch.tensor([tokens]), use_cache=False).logits[0].float()
        return self._logits[tokens]

    def log_likelihood(self, continuation: Continuation) -> float:
        """Summed over the scored tokens; the last one predicts nothing and is not fed."""
        if continuation not in self._log_likelihoods:
            logits = self.logits(continuation.tokens[:-1])[continuation.start - 1 :]
            asked = torch.tensor(continuation.tokens[continuation.start :])
            scores = logits.log_softmax(dim=-1).gather(1, asked[:, None])
            self._log_likelihoods[continuation] = float(scores.double().sum())
        return self._log_likelihoods[continuation]


def wrong_scores(scores: Scores, plain: Plain) -> list[str]:
    """What is wrong with log-likelihoods and first tokens of questions(), a line each."""
    found = []
    for index, asked in enumerate(questions()):
        expected = plain.log_likelihood(asked)
        difference = abs(scores.log_likelihood[index] - expected)
        if not difference <= NATS:
            found.append(f"{len(asked.tokens)} tokens from {asked.start}: {difference:.4f} nats from {expected:.3f}")
        logits = plain.logits(asked.tokens[:-1])[asked.start - 1]
        if float(logits.max() - logits[scores.first_token[index]]) > NATS:
            found.append(f"{len(asked.tokens)} tokens from {asked.start}: another first token")
    return found


def wrong_answers(answers: list[list[int]], plain: Plain) -> list[str]:
    """Which greedy answers to prompts() are not the plain ones; where two tokens are as likely, either is right."""
    found = []
    for prompt, answer in zip(prompts(), answers, strict=True):
        if len(answer) != NEW_TOKENS:
            found.append(f"{len(prompt)} tokens: an answer of {len(answer)}")
        for step, token in enumerate(answer):
            logits = plain.logits((*prompt, *answer[:step]))[-1]
            margin = float(logits.max() - logits[token])
            if margin > 0:
                if margin > NATS:
                    found.append(f"{len(prompt)} tokens: step {step} is {margin:.4f} below the best")
                break
            if token < TOKENS[0]:  # a text ends there; RoBERTa does not count padding as a position
                break
    return found


def calibration_windows() -> Tensor:
    return torch.randint(*TOKENS, (3, 96), generator=torch.Generator().manual_seed(0))


def wrong_statistics(walked: dict[str, Tensor], plain: dict[str, Tensor]) -> list[str]:
    found = [f"{name}: only one way sees it" for name in walked.keys() ^ plain.keys()]
    for name in walked.keys() & plain.keys():
        error = float((walked[name] - plain[name]).abs().max() / plain[name].abs().max().clamp(min=1e-12))
        if not error <= RELATIVE:
            found.append(f"{name}: {error:.2e} off")
    return found


Given = dict[str, Any]  # arguments of a forward pass, by name


@contextlib.contextmanager
def calls_changed(model: PreTrainedModel, change: Callable[[Given], None]) -> Iterator[None]:
    """Inside, `change` sees, and may alter, the arguments of every forward pass of the model or of its base alone."""
    inside = threading.local()  # a base that the model calls is not seen again

    def enter(module: nn.Module, args: tuple, kwargs: Given) -> tuple[tuple, Given]:
        inside.depth = getattr(inside, "depth", 0) + 1
        if inside.depth > 1:
            return args, kwargs
        parameters = inspect.signature(type(module).forward).parameters
        names = list(parameters)[1:] if "args" not in parameters else ["input_ids"]
        given = dict(zip(names, args, strict=False)) | kwargs
        change(given)
        return (), given

    def leave(*_: object) -> None:
        inside.depth -= 1

    with contextlib.ExitStack() as hooks:
        for module in {model, model.base_model}:
            hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


@contextlib.contextmanager
def tokens_shifted(model: PreTrainedModel, what: str) -> Iterator[None]:
    """Inside, tokens stand one place too far: every second SHIFTED of them by their positions, or all by their ids."""
    takes_mask = "attention_mask" in inspect.signature(type(model).forward).parameters

    def shift(given: Given) -> None:
        ids = given["input_ids"]
        if what == "ids":
            given["input_ids"] = ids.roll(1, dims=1)
            return
        positions = given.get("position_ids")
        if positions is None:
            cached = given.get("past_key_values")
            before = cached.get_seq_length() if cached is not None else 0
            positions = torch.arange(before, before + ids.shape[1])[None].expand(len(ids), -1)
        if given.get("attention_mask") is None and takes_mask:  # else a gap begins another sequence
            given["attention_mask"] = torch.ones(len(ids), int(positions.max()) + 1, dtype=torch.int64)
        given["position_ids"] = positions + positions // SHIFTED % 2

    with calls_changed(model, shift):
        yield


@torch.no_grad()
def shift_that_counts(model: PreTrainedModel) -> str:
    """Positions where these decide for a fifth of all places which token comes next, else ids."""
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        return "ids"
    ids = calibration_windows()[:1]
    own = model(ids, use_cache=False).logits.argmax(dim=-1)
    try:
        with tokens_shifted(model, "positions"):
            shifted = model(ids, use_cache=False).logits.argmax(dim=-1)
    except RuntimeError:  # Reformer pads positions by their number
        return "ids"
    return "positions" if float((own != shifted).float().mean()) >= 0.2 else "ids"


def way_taken(model: PreTrainedModel) -> tuple[str, float]:
    """How questions() are fed, by what the model is called with, and the part of plainly fed tokens that is fed."""
    fed, found = 0, set()

    def look(given: Given) -> None:
        nonlocal fed
        ids, positions, cached = (given.get(name) for name in ("input_ids", "position_ids", "past_key_values"))
        fed += ids.numel()
        if positions is not None and bool((positions.diff(dim=-1) != 1).any()):
            found.add("packed")
        if cached is not None and cached.get_seq_length():
            found.add("shared")
        if len(ids) > 1:
            found.add("padded")

    with calls_changed(model, look):
        log_likelihoods(model, questions(), tokens_per_batch=2048)
    plainly = sum(map(len, {asked.tokens[:-1] for asked in questions()}))
    ways = found - {"padded"} if "packed" in found else found
    return "+".join(sorted(ways)) or "plain", fed / plainly


class Outcome(NamedTuple):
    """What one check found: "ok", "refused", "WRONG" or "none" to compare with; a figure, and a few words."""

    verdict: str
    figure: float = 0.0
    words: str = ""


class UncomputableError(Exception):
    """Transformers' own forward pass fails: there is nothing to compare with."""


def check(compare: Callable[[], tuple[list[str], float]]) -> Outcome:
    """Run one comparison; a ValueError that we raise is a refusal, any other error is wrong."""
    try:
        wrong, figure = compare()
    except UncomputableError as error:
        return Outcome("none", float("nan"), str(error)[:300])
    except Exception as error:
        raised = traceback.extract_tb(error.__traceback__)[-1]
        ours = Path(raised.filename).is_relative_to(ROOT) and ".venv" not in raised.filename
        refused = ours and isinstance(error, ValueError) and raised.line.startswith("raise ")
        return Outcome("refused" if refused else "WRONG", float("nan"), f"{type(error).__name__}: {error}"[:300])
    return Outcome("WRONG" if wrong else "ok", figure, "; ".join(wrong[:3]))


def compare_scores(model: PreTrainedModel, plain: Plain) -> tuple[list[str], float]:
    """Two workers where the engine has workers."""
    threads = torch.get_num_threads()
    ways = scoring_ways(model, distinct_reads(questions()))  # by one thread: two would wait for each other
    torch.set_num_threads(2)
    try:
        scores = log_likelihoods(model, questions(), tokens_per_batch=4096, ways=ways)
    finally:
        torch.set_num_threads(threads)
    expected = np.array([plain.log_likelihood(asked) for asked in questions()])
    return wrong_scores(scores, plain), float(np.abs(scores.log_likelihood - expected).max())


def compare_answers(model: PreTrainedModel, plain: Plain) -> tuple[list[str], float]:
    end = AnswerEnd(NEW_TOKENS, lambda answer: False)
    answers, _ = greedy_answers(model, prompts(), end, tokens_per_batch=512)
    wrong = wrong_answers(answers, plain)
    return wrong, float(len(wrong))


def compare_statistics(model: PreTrainedModel) -> tuple[list[str], float]:
    windows = calibration_windows()
    forget(model)
    walked = walked_input_sq_norms(copy.deepcopy(model), windows, 2 * windows.shape[1])
    plain = plain_input_sq_norms(copy.deepcopy(model), windows)
    wrong = wrong_statistics(walked, plain)
    if (walked_list := decoder_blocks(model)[0]) != (used := most_used_list(model, windows)):
        wrong.append(f"{walked_list} is compressed, text passes through {used}")
    return wrong, float(len(wrong))


@torch.no_grad()
def most_used_list(model: PreTrainedModel, windows: Tensor) -> str:
    """The outermost list of modules in which most weights meet a text: the language model's blocks."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    used: dict[str, int] = {}
    handles = []
    for name, blocks in lists.items():
        if any(name.startswith(f"{outer}.") for outer in lists):
            continue
        weights = sum(parameter.numel() for parameter in blocks.parameters())
        handles.append(blocks[0].register_forward_hook(lambda *_, name=name, n=weights: used.update({name: n})))
    try:
        model(windows[:1, :8], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return max(used, key=used.get)


def compare_bf16(folder: Path) -> tuple[list[str], float]:
    """Mean distances from float32 with the weights that bf16 has: ours over transformers' own."""
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    single = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    single.load_state_dict(half.state_dict())
    asked = [one for one in questions() if len(one.tokens) < 70 or len(one.tokens) == one.start + 1]
    try:
        expected, theirs = (np.array(list(map(Plain(model).log_likelihood, asked))) for model in (single, half))
    except RuntimeError as error:
        raise UncomputableError(f"transformers: {error}") from error
    ours = log_likelihoods(half, asked, tokens_per_batch=1024).log_likelihood
    our_distance, their_distance = (float(np.abs(some - expected).mean()) for some in (ours, theirs))
    wrong = not our_distance <= BF16_TIMES * their_distance + BF16_FLOOR
    words = [f"{our_distance:.4f} nats from float32, transformers {their_distance:.4f}"] if wrong else []
    return words, our_distance / max(their_distance, 1e-9)


def streamed(folder: Path) -> Outcome:
    """Whether a model compressed block by block from its files has the bits of one compressed in memory."""
    try:
        said = streamed_equals_memory(folder, calibration_windows())
    except Exception as error:
        return Outcome("WRONG", float("nan"), f"{type(error).__name__}: {error}"[:300])
    return Outcome("ok" if said == "equal" else "refused", 0.0, said)


def spread(plain: Plain) -> float:
    """Between the best and the worst of a question's letters, in nats: the median."""
    letters: dict[Tokens, list[float]] = {}
    for asked in questions():
        log_likelihood = plain.log_likelihood(asked)
        if asked.start == len(asked.tokens) - 1:
            letters.setdefault(asked.tokens[:-1], []).append(log_likelihood)
    return float(np.median([max(some) - min(some) for some in letters.values() if len(some) == 4]))


def examine(name: str, folder: Path) -> dict[str, Any]:
    """All checks of one architecture: their outcomes, the way the engine took, and whether shifts are noticed."""
    found, model = examine_float32(name)
    model.save_pretrained(folder / "model")
    found["bf16"] = check(lambda: compare_bf16(folder / "model"))
    found["streamed"] = streamed(folder / "model")
    return found


def examine_float32(name: str) -> tuple[dict[str, Any], PreTrainedModel]:
    """The checks that need no folder, and the model."""
    model = tiny_model(name)
    plain = Plain(model)
    found_spread = spread(plain)  # all that is asked is computed plainly before the engine is watched
    found: dict[str, Any] = {"name": name, "spread": found_spread}
    found["scores"] = check(lambda: compare_scores(model, plain))
    if found["scores"].verdict == "ok":  # paths are proven by now
        found["way"], found["computed"] = way_taken(model)
    found["answers"] = check(lambda: compare_answers(model, plain))
    found["statistics"] = check(lambda: compare_statistics(model))
    found["shift"] = shift_that_counts(model)
    with tokens_shifted(model, found["shift"]):
        found["shifted_scores"] = check(lambda: compare_scores(model, plain))
        found["shifted_answers"] = check(lambda: compare_answers(model, plain))
    found["shifted_statistics"] = check(lambda: compare_shifted_statistics(model, found["shift"]))
    return found, model


def compare_shifted_statistics(model: PreTrainedModel, what: str) -> tuple[list[str], float]:
    windows = calibration_windows()
    with tokens_shifted(model, what):
        walked = walked_input_sq_norms(model, windows, 2 * windows.shape[1])
    wrong = wrong_statistics(walked, plain_input_sq_norms(model, windows))
    return wrong, float(len(wrong))


CHECKS = ("scores", "answers", "statistics", "bf16", "streamed")


def table(found: list[dict[str, Any]]) -> str:
    """A line per architecture.

    Its columns: the way the engine took, tokens computed of those that plain passes take, nats between letters, and of
    each check the verdict and a figure: largest difference in nats, wrong answers, wrong weights, distance from float32
    over transformers' own, tensors that differ.
    """
    heads = " ".join(f"{name:>13}" for name in CHECKS)
    lines = [f"{'architecture':30} {'way':13} {'computed':>8} {'nats':>5} {heads}"]
    for one in found:
        outcomes = [Outcome(*one[name]) for name in CHECKS]
        cells = " ".join(f"{outcome.verdict + f' {outcome.figure:.1g}':>13}" for outcome in outcomes)
        way, computed = one.get("way", "-"), one.get("computed", 0.0)
        lines.append(f"{one['name']:30} {way:13} {computed:8.0%} {one['spread']:5.1f} {cells}")
    return "\n".join(lines)


def assert_right(found: dict[str, Any]) -> None:
    wrong = [f"{name}: {found[name].words}" for name in CHECKS if name in found and found[name].verdict == "WRONG"]
    assert not wrong, "\n".join([found["name"], *wrong])
    assert found["spread"] > 1
    assert ("packed" in found["way"]) == (found["name"] not in NOT_PACKED), f"fed {found['way']}"
    for name in ("scores", "answers", "statistics"):
        shifted = found[f"shifted_{name}"]
        noticed = shifted.verdict == "WRONG" and shifted.figure > 0
        assert noticed or found[name].verdict == "refused", f"{name}: {found['shift']} are shifted: {shifted}"


@pytest.fixture(scope="module")
def examined(request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    """What was found of each architecture; printed as a table after the last, where no other process tests the rest."""
    found: list[dict[str, Any]] = []
    yield found
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and found:
        reporter.write_line("")
        reporter.write_line(table(found))


@pytest.mark.architectures
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_computed_as_plain_forward_passes_compute_it(
    name: str, tmp_path: Path, examined: list[dict[str, Any]]
):
    found = examine(name, tmp_path)
    examined.append(found)
    if path := os.environ.get("ARCHITECTURES_TABLE"):
        with Path(path).open("a") as file:
            file.write(json.dumps(found) + "\n")
    assert_right(found)


@pytest.mark.parametrize("name", [*REPRESENTATIVE[:3], *slow_cases(*REPRESENTATIVE[3:])])
def test_a_representative_architecture_is_computed_as_plain_forward_passes_compute_it(name: str):
    assert_right(examine_float32(name)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRESENTATIVE_IN_BF16)
def test_bf16_is_as_near_to_float32_as_transformers_own(name: str, tmp_path: Path):
    tiny_model(name).save_pretrained(tmp_path)
    found = check(lambda: compare_bf16(tmp_path))
    assert found.verdict == "ok", found.words


if __name__ == "__main__":
    latest = {row["name"]: row for row in map(json.loads, Path(sys.argv[1]).read_text().splitlines())}
    print(table(list(latest.values())))
