"""Windows of text to train a language model on, apart from those that it is calibrated or evaluated on."""

import logging
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pruning.calibration import joined_stream

logger = logging.getLogger(__name__)

SHARED_TOKENS = 32  # in a row: a training window that has as many in common with another text is left out
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no token's share of a hash is shifted out


class TrainingText(NamedTuple):
    """What a model is trained on.

    Fields:
        tokens: (windows, seq_len) int64.
        left_out: windows before the last of these that have SHARED_TOKENS tokens in a row in common with another text.
    """

    tokens: Tensor
    left_out: int


def training_windows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], count: int, seq_len: int, seed: int,
    apart_from: Sequence[Tensor] = (),
) -> TrainingText:  # fmt: skip
    """Draw windows that share no SHARED_TOKENS tokens in a row with other texts.

    The documents are joined in random order by the end-of-text token and cut into windows; the first `count` windows
    that may be trained on are taken, or all where the text has fewer.

    Args:
        texts: documents.
        count: windows wanted, at least 1.
        seq_len: tokens per window, at least 2.
        seed: of the documents' order.
        apart_from: windows of calibration and of evaluation, (number, tokens) each; windows of fewer than SHARED_TOKENS
            tokens, here or there, are compared by as many tokens as the shortest have.
    Raises:
        ValueError: the text has no window to train on (says why).
    """
    shuffled = random.Random(f"training {seed}").sample(texts, len(texts))  # not the order that calibration draws
    run = min([SHARED_TOKENS, seq_len, *(windows.shape[1] for windows in apart_from)])
    known = np.concatenate([np.empty(0, np.uint64), *(hashes(own.numpy(), run).ravel() for own in apart_from)])
    wanted = count
    while True:
        stream = joined_stream(tokenizer, shuffled, wanted * seq_len)
        windows = stream[: len(stream) // seq_len * seq_len].reshape(-1, seq_len).astype(np.int64)[:wanted]
        free = ~np.isin(hashes(windows, run), known).any(axis=1)
        if free.sum() >= count or len(windows) < wanted:
            break
        wanted += max(count - int(free.sum()), count // 10 + 1)
    if not free.any():
        why = f"it has {len(stream)} tokens" if not len(windows) else "it is calibrated or evaluated on altogether"
        raise ValueError(f"no window of {seq_len} tokens is there to train on: {why}")
    chosen = np.flatnonzero(free)[:count]
    return TrainingText(torch.from_numpy(windows[chosen]), int(chosen[-1]) + 1 - len(chosen))


def hashes(windows: np.ndarray, run: int) -> np.ndarray:
    """Hash of every `run` consecutive tokens of every window, uint64, (number, tokens - run + 1).

    Equal tokens have equal hashes; of others, one pair in 2^64 may have by chance, which costs a training window.

    Args:
        windows: (number, tokens) of token ids; tokens at least `run`.
    """
    width = windows.shape[1] - run + 1
    found = np.zeros((len(windows), width), np.uint64)
    for offset in range(run):  # the product wraps around at 2^64
        found = found * HASH_BASE + windows[:, offset : offset + width].astype(np.uint64) + np.uint64(1)
    return found ^ found >> np.uint64(29)
