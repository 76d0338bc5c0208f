"""Perplexity of a language model, dense and compressed.

    python llm_tasks/perplexity.py --model_name_or_path lmsys/vicuna-7b-v1.5 --compression wanda --sparsity 0.5 \\
        --output_dir runs/vicuna-7b/wanda/0.5

A sweep, with one load of the model:

    python llm_tasks/perplexity.py --model_name_or_path lmsys/vicuna-7b-v1.5 --compression dense magnitude wanda gptq \\
        --sparsity 0.1 0.3 0.5 0.7 --nm_ratio 6:8 4:8 2:8 --bits 8 4 3 --seed 0 1 2 \\
        --output_dir "runs/{compression}/{strength}/{seed}"

The text is cut into windows that do not overlap, the last one is dropped where it is not full, and the mean of the
windows' mean losses is exponentiated: the convention of published perplexities on WikiText-2.
"""

import argparse
import math
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.cells import Cell
from harness.device import autocast
from harness.options import filled, positive, typed
from harness.progress import Progress
from llm_tasks import arguments, experiment
from llm_tasks.engine.processes import Processes
from llm_tasks.experiment import Evaluation, Setting
from pruning import calibration
from pruning.streaming import StreamedBlocks
from pruning.walk import Replay

POSITIONS_PER_LOSS = 1024  # so many positions' logits are turned to float32 at once


def make_parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser(__doc__)
    add = parser.add_argument_group("evaluation").add_argument
    add("--text", type=filled, default="wikitext2",
        help="wikitext2 (its test split), c4, or a .txt, .jsonl or .parquet file, also .gz")  # fmt: skip
    add("--text_field", type=filled, default="text", metavar="FIELD", help="column of the file that holds the text")
    add("--seq_len", type=positive, help="tokens per window (default: 2048 or what the model takes)")
    add("--max_windows", type=positive, help="evaluate the first windows only (default all)")
    return parser


def identify(args: argparse.Namespace) -> dict[str, Any]:
    return calibration.source_content("text", args.text, evaluation_split(args), args.data_dir)


def readers(args: argparse.Namespace) -> tuple[str, ...]:
    return ("perplexity",)


def evaluation_split(args: argparse.Namespace) -> str:
    return {"wikitext2": "test", "c4": "validation"}.get(args.text, "train")


def prepare(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tensor:
    """The windows, (number, seq_len)."""
    seq_len = args.seq_len or min(2048, max_length)
    if seq_len > max_length or seq_len < 2:
        raise ValueError(f"--seq_len {seq_len}: the model takes 2 to {max_length} tokens")
    texts = calibration.read_texts(
        args.text, split=evaluation_split(args), text_field=args.text_field, data_dir=args.data_dir
    )
    return calibration.text_windows(tokenizer, "\n\n".join(texts), seq_len)[: args.max_windows]


def window_losses(logits: Tensor, windows: Tensor) -> list[float]:
    """Mean negative log-likelihood of each window's tokens but the first, in nats.

    Args:
        logits: (windows, seq_len, vocabulary), of any dtype; the loss is computed in float32.
        windows: (windows, seq_len) token ids.
    """
    targets = windows[:, 1:].to(logits.device)
    total = torch.zeros(len(windows), device=logits.device)
    step = max(1, POSITIONS_PER_LOSS // len(windows))
    for start in range(0, targets.shape[1], step):
        chunk = targets[:, start : start + step]
        scores = logits[:, start : start + chunk.shape[1]].float()
        total += nn.functional.cross_entropy(scores.transpose(1, 2), chunk, reduction="none").sum(dim=1)
    return (total / targets.shape[1]).tolist()


@torch.no_grad()
def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, windows: Tensor, cell: Cell, args: argparse.Namespace,
    processes: Processes,
) -> Evaluation:  # fmt: skip
    precision = arguments.precision_of(args)
    losses = np.zeros(len(windows))
    starts = range(0, len(windows), max(1, arguments.tokens_per_batch_of(args) // windows.shape[1]))
    part = processes.own_part([1] * len(starts))
    with processes.together():
        for start in Progress(starts[part.start : part.stop], "perplexity"):
            batch = windows[start : start + starts.step]
            with autocast(precision, model.device.type, model.dtype):
                logits = model(batch.to(model.device), use_cache=False).logits
            losses[start : start + len(batch)] = window_losses(logits, batch)
    return perplexity(processes.merge(losses), model.config.get_text_config().vocab_size, args)


@torch.no_grad()
def evaluate_streamed(stream: StreamedBlocks, windows: Tensor, cell: Cell, args: argparse.Namespace) -> Evaluation:
    """The same with one block in memory at a time: all windows go through it before the next is read."""
    replay = Replay(stream.model, stream, windows, arguments.tokens_per_batch_of(args), arguments.precision_of(args))
    for index in Progress(range(len(stream.blocks)), "perplexity"):
        with stream.hold(index) as block:
            replay.advance(index, block)
    losses = [loss for batch, logits in replay.logits() for loss in window_losses(logits, batch)]
    return perplexity(np.array(losses), stream.model.config.get_text_config().vocab_size, args)


def perplexity(losses: np.ndarray, vocabulary: int, args: argparse.Namespace) -> Evaluation:
    """The run's one level; chance is a model that knows nothing, the standard error is over windows."""
    if not np.isfinite(losses).all():
        raise FloatingPointError("the compressed model's losses are NaN or infinite")
    score = math.exp(losses.mean())
    stderr = score * losses.std(ddof=1) / math.sqrt(len(losses)) if len(losses) > 1 else None
    level = {
        "level": args.text, "difficulty": 0.0, "metric": "perplexity", "score": score, "chance": vocabulary,
        "stderr": stderr, "num_examples": len(losses),
    }  # fmt: skip
    return Evaluation([level], {"window_loss": losses}, {"task": args.text})


SETTING = Setting("perplexity", identify, prepare, evaluate, readers, evaluate_streamed)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    given = typed(parser, argv)
    try:
        arguments.check_obeyed(args, given)
        if "text_field" in given:
            arguments.check_field("text_field", "text", args)
    except ValueError as error:
        parser.error(str(error))
    return experiment.run(parser, args, [SETTING])


if __name__ == "__main__":
    sys.exit(main())
