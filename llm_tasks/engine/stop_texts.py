"""Greedy answers that end at given texts, as lm-evaluation-harness's generate_until asks for them.

An answer is what the model generates up to the first of its stop texts, an end-of-text token or its longest length. The
model's own generation settings that change the choice of a token (a penalty for repetitions) are obeyed, as
transformers' generate obeys them.
"""

from collections.abc import Callable, Sequence

from transformers import (
    GenerationConfig,
    LogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)

from llm_tasks.engine.encoding import Stop
from llm_tasks.engine.greedy import AnswerEnd, greedy_answers
from llm_tasks.engine.log_likelihood import Work
from llm_tasks.engine.packing import Tokens
from llm_tasks.engine.processes import ALONE, Processes
from llm_tasks.engine.ways import Ways

TAIL_TOKENS = 2  # a stop text may begin and end inside tokens, so that many more than its own are decoded
# Fields of a generation config that change greedy choices in other ways than the two that are obeyed here.
NOT_OBEYED = (
    "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "bad_words_ids", "min_length", "min_new_tokens",
    "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "sequence_bias", "guidance_scale", "watermarking_config", "prompt_lookup_num_tokens",
    "assistant_early_exit", "stop_strings", "max_time",
)  # fmt: skip
NEUTRAL = (None, 0, 1, 1.0, False)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a text: the tokenizer's, and those of the model's generation config."""
    ends = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}


def not_obeyed(config: GenerationConfig) -> list[str]:
    """The fields of a generation config that would change greedy answers and that answers_until does not obey."""
    beams = ["num_beams"] if (getattr(config, "num_beams", 1) or 1) > 1 else []
    return beams + [name for name in NOT_OBEYED if getattr(config, name, None) not in NEUTRAL]


def penalties(config: GenerationConfig) -> list[LogitsProcessor]:
    """What changes logits before a token is chosen, of the fields that are obeyed."""
    found: list[LogitsProcessor] = []
    if getattr(config, "repetition_penalty", None) not in NEUTRAL:
        found.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if getattr(config, "no_repeat_ngram_size", None) not in NEUTRAL:
        found.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    return found


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop; each stop is looked for in what those before it in the list left.

    Source: lm-evaluation-harness, models/utils.py, postprocess_generated_text.
    """
    for stop in filter(None, stops):
        text = text.partition(stop)[0]
    return text


def answers_until(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Tokens], stops: Sequence[Stop],
    tokens_per_batch: int, precision: str = "no", ways: Ways | None = None, processes: Processes = ALONE,
) -> tuple[list[str], Work]:  # fmt: skip
    """The text of each greedy answer before its stop.

    Args:
        prompts, stops: of each answer, in any order; answers with the same stop are generated together.
        tokens_per_batch, precision, ways, processes: see greedy_answers.
    Raises:
        ValueError: the model's generation config asks for what is not obeyed here.
    """
    if fields := not_obeyed(model.generation_config):
        raise ValueError(f"the model's generation config has {', '.join(fields)}: its answers would be others here")
    ends = end_tokens(model, tokenizer)
    texts = [""] * len(prompts)
    computed = distinct = 0
    for stop in dict.fromkeys(stops):
        members = [index for index, own in enumerate(stops) if own == stop]
        end = AnswerEnd(
            stop.max_new_tokens, _finished(tokenizer, stop, ends), ends=tuple(ends),
            processors=penalties(model.generation_config),
        )  # fmt: skip
        asked = [prompts[index] for index in members]
        found, work = greedy_answers(model, asked, end, tokens_per_batch, precision, ways, processes)
        for index, tokens in zip(members, found, strict=True):
            texts[index] = cut(tokenizer.decode(tokens, skip_special_tokens=True), stop.texts)
        computed, distinct = computed + work.computed, distinct + work.distinct
    return texts, Work(computed, distinct)


def _finished(tokenizer: PreTrainedTokenizerBase, stop: Stop, ends: set[int]) -> Callable[[list[int]], bool]:
    """Whether an answer, as token ids, has ended; a stop text may be, or hold, a special token.

    Its last tokens are decoded first, and the whole only where a stop text is among them.
    """
    texts = [text for text in stop.texts if text]
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    tail = max(lengths, default=0) + TAIL_TOKENS

    def finished(tokens: list[int]) -> bool:
        if tokens[-1] in ends:
            return True
        last = tokenizer.decode(tokens[-tail:])
        if not any(text in last for text in texts):
            return False
        whole = tokenizer.decode(tokens)
        return any(text in whole for text in texts)

    return finished
