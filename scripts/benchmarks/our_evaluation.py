"""Our side of `benchmark.py evaluation`: the engine scores multiple-choice rows, timed, as peer_lm_eval.py does."""

import argparse
import contextlib
import gc
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from harness.device import device_named, keep_freed_memory, peak_memory, use_device
from harness.options import positive
from llm_tasks.compressed_model import max_length
from llm_tasks.engine import cpu
from llm_tasks.engine.encoding import EncodedLevel, TextEncoder, encode_levels, prompt_text
from llm_tasks.evaluation import Evaluation, Reading, engine_ways, measure
from llm_tasks.levels import Level
from llm_tasks.option_values import tokens_scored_at_once
from llm_tasks.settings import human_gap, k_shot
from llm_tasks.tasks import commonsense, mmlu
from measuring import ASSETS, CLOCKS, DECODER, make_parser
from process_memory import peak_bytes, reset_peak, resident_bytes

EVALUATED = ("piqa", "hellaswag", "openbookqa", "mmlu")
WAYS = ("together", "apart", "unshared")  # all levels at once; level by level; level by level, every sequence whole


def add_questions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, default=DECODER, help="folder of a decoder (default asset)")
    add("--data_dir", type=Path, default=ASSETS / "data",
        help="folder of <task>/<split>.jsonl or .jsonl.gz (default assets)")  # fmt: skip
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights (default float32)",
    )
    add("--device", default="cpu", help="of the model: cpu, or an accelerator such as cuda:1 (default cpu)")
    add("--tokens_per_batch", type=positive, help="ours: tokens computed at once (default: the scripts')")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of peer_lm_eval.py, as far as both sides have them, and what only ours does."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--task", choices=EVALUATED, required=True)
    add("--items", type=Path, required=True, help="JSON list of the rows to score, counted from 0")
    add("--shots", type=int, nargs="+", required=True, help="mmlu: worked examples, a level for each number")
    add("--way", choices=WAYS, default="together", help="which levels share what they compute (default together)")
    add("--output", type=Path, required=True, help="write the result here, as JSON")
    add_questions(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Score a task's rows; write what peer_lm_eval.py writes, and the numbers of tokens."""
    args = parse_args(argv)
    device = device_named(args.device)
    use_device(device)
    keep_freed_memory()
    gc.freeze()  # all as llm_tasks.run does
    times: dict[str, dict[str, float]] = {clock: {} for clock in CLOCKS}
    with stage("load", times):
        dtype = getattr(torch, args.dtype)
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, use_safetensors=True).eval().to(device)
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        for parameter in model.parameters():
            parameter.sum()  # weights of the file's own dtype are mapped, and count from when they are first read
        cpu.load_compiler(model)  # the libraries that the engine computes with: the peer has loaded its own by then
    loading_peak, loaded_bytes = peak_bytes(), resident_bytes()
    reset_peak()
    with stage("build", times):
        rows = json.loads(args.items.read_text())
        questions = load_questions(args.task, args.data_dir)
        questions = [questions[row] for row in rows]  # the scripts keep no more than their sample, too
        chosen = {question.item: row for question, row in zip(questions, rows, strict=True)}
        levels = make_levels(args.task, args.data_dir, questions, args.shots)
    with stage("tokenize", times):
        encoded = encode_levels(levels, TextEncoder(tokenizer), max_length(model), 1, "drop_shots")
    with stage("forward", times):
        at_once = tokens_scored_at_once(args.tokens_per_batch, device)
        found = measure_by(args.way, model, tokenizer, encoded, at_once)
    scoring_peak = peak_bytes()
    for stages in times.values():
        stages["score"] = stages["tokenize"] + stages["forward"]
    result = {
        "rows": [row for some, outcome in found for row in scored_rows(some, outcome, chosen)],
        "seconds": times["wall"],
        "cpu_seconds": times["cpu"],
        "loaded_bytes": loaded_bytes,
        "scoring_peak_bytes": scoring_peak,
        "peak_bytes": max(loading_peak, scoring_peak),
        "device_peak_bytes": peak_memory([device]) if device.type != "cpu" else 0,
        "shortened": sum(level.shortened for level in encoded),
        "tokens_computed": sum(outcome.facts["tokens_computed"] for _, outcome in found),
        "tokens_distinct": sum(outcome.facts["tokens_distinct"] for _, outcome in found),
        "tokens_of_peer": sum(map(tokens_of_peer, encoded)),
    }
    args.output.write_text(json.dumps(result))


def load_questions(task: str, data_dir: Path) -> list[mmlu.Question] | list[commonsense.Question]:
    """All rows of the split that lm-evaluation-harness scores, in the file's order."""
    return mmlu.load(data_dir, "test") if task == "mmlu" else commonsense.load_task(task, data_dir)


@contextlib.contextmanager
def stage(name: str, times: dict[str, dict[str, float]]) -> Iterator[None]:
    """The seconds of this context become times[clock][name], on each of CLOCKS."""
    started = {clock: now() for clock, now in CLOCKS.items()}
    yield
    for clock, now in CLOCKS.items():
        times[clock][name] = now() - started[clock]


def make_levels(
    task: str, data_dir: Path, questions: Sequence[mmlu.Question] | Sequence[commonsense.Question],
    shots: Sequence[int],
) -> list[Level]:  # fmt: skip
    """The task's levels as settings 4 and 5 build them; mmlu's few-shot examples in the file's order, as the peer's."""
    if task != "mmlu":
        return [human_gap.task_level(task, list(questions), "cloze")]
    examples = mmlu.load(data_dir, "dev")
    mmlu.check_examples(questions, examples, max(shots), "--num_shots")
    return k_shot.levels(questions, examples, shots, "letter")


def measure_by(
    way: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: list[EncodedLevel],
    tokens_per_batch: int,
) -> list[tuple[list[EncodedLevel], Evaluation]]:  # fmt: skip
    """The levels that were measured together, and what was found; `way` is one of WAYS."""
    found = []
    for part in [encoded] if way == "together" else [[level] for level in encoded]:
        ways = engine_ways(model, part)
        if way == "unshared":
            ways = tuple(own._replace(shares=False, packs=False, pads=True) for own in ways)
        found.append((part, measure(model, tokenizer, part, Reading(tokens_per_batch=tokens_per_batch), ways=ways)))
    return found


def scored_rows(levels: list[EncodedLevel], outcome: Evaluation, chosen: dict[str, int]) -> list[dict[str, Any]]:
    """The result of each row at each level, as peer_lm_eval.py writes it, and its options' lengths in characters.

    Args:
        outcome: of the levels, by measure.
        chosen: the row of each item.
    """
    rows = []
    for index, encoded in enumerate(levels):
        columns = {name: outcome.items[f"level{index}_{name}"] for name in ("option_count", "option_log_likelihood")}
        parts = np.split(columns["option_log_likelihood"], columns["option_count"].cumsum()[:-1])
        for place, (prompt, part) in enumerate(zip(encoded.level.prompts, parts, strict=True)):
            metrics = {"acc": "accuracy", "acc_norm": "accuracy_norm"}
            texts = json.dumps([[prompt_text(prompt), option] for option in prompt.options])
            rows.append(
                {
                    "row": chosen[prompt.item],
                    "level": encoded.level.name,
                    "gold": prompt.gold,
                    "log_likelihoods": part.tolist(),
                    "lengths": [max(1, len(option.removeprefix(" "))) for option in prompt.options],
                    **{
                        name: float(outcome.items[f"level{index}_{own}"][place])
                        for name, own in metrics.items() if f"level{index}_{own}" in outcome.items
                    },
                    "requests_sha256": hashlib.sha256(texts.encode()).hexdigest(),
                }
            )  # fmt: skip
    return rows


def tokens_of_peer(encoded: EncodedLevel) -> int:
    """Tokens that lm-evaluation-harness feeds: every sequence whole, those that differ in the last token once.

    Source: lm-evaluation-harness, models/huggingface.py, _lookup_one_token_cont.
    """
    fed = {continuation.tokens[:-1] for options in encoded.continuations for continuation in options}
    return sum(map(len, fed))


if __name__ == "__main__":
    main()
