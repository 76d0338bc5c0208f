"""Perplexity on a text: exp of the mean negative log-likelihood per token, in windows that do not overlap."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.options import filled, positive
from llm_tasks.levels import Setting, option
from pruning import calibration


@dataclass(frozen=True, kw_only=True)
class Values:
    """The options that this setting reads, and the longest input of the model in tokens."""

    data_dir: Path | None
    max_length: int
    text: str = option("wikitext2", type=filled,
        help="wikitext2 (its test split), c4, or a .txt, .jsonl or .parquet file, also .gz")  # fmt: skip
    text_field: str = option("text", type=filled, metavar="FIELD", help="column of the file that holds the text")
    seq_len: int | None = option(
        type=positive, help="tokens per window (default: 2048, or the most that the model takes)"
    )
    max_windows: int | None = option(
        type=positive, help="evaluate only this many windows, the first ones (default all)"
    )
    kl: bool = option(False, action="store_true",
        help="also record KL(dense || compressed) of the next token, mean over the windows: the dense model is loaded "
        "a second time beside the compressed one, and computed on the same windows")  # fmt: skip

    @property
    def split(self) -> str:
        """The split that is evaluated, of c4 or wikitext2; of no effect on a file."""
        return {"wikitext2": "test", "c4": "validation"}.get(self.text, "train")


def content(values: Values) -> dict[str, str]:
    return calibration.source_content("text", values.text, values.split, values.data_dir)


def load(values: Values) -> str:
    """The text, its documents joined by blank lines.

    Raises:
        ValueError: it cannot be read, or --seq_len is more than the model takes.
    """
    if not 2 <= window_length(values) <= values.max_length:
        raise ValueError(f"--seq_len {window_length(values)}: the model takes 2 to {values.max_length} tokens")
    texts = calibration.read_texts(
        values.text, split=values.split, text_field=values.text_field, data_dir=values.data_dir
    )
    return "\n\n".join(texts)


def window_length(values: Values) -> int:
    return values.seq_len or min(2048, values.max_length)


def build(data: str, values: Values, seed: int, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The windows, (number, tokens); an incomplete last one is dropped."""
    return calibration.text_windows(tokenizer, data, window_length(values))[: values.max_windows]


SETTING = Setting(
    name="perplexity",
    task="perplexity",
    title="evaluation",
    values=Values,
    content=content,
    readers=lambda values: ("perplexity",),
    load=load,
    build=build,
)
