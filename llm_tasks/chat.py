"""Prompts as a user's message in the model's own chat template, for models that were tuned to answer such messages."""

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from llm_tasks.packing import Tokens
from llm_tasks.prompts import Level, Prompt

MESSAGE = "MESSAGE"


class Turn(NamedTuple):
    """What a chat template puts before a user's message, and after it up to where the model's answer begins."""

    before: str
    after: str


def user_turn(tokenizer: PreTrainedTokenizerBase, leading: Tokens) -> Turn:
    """The turn of a conversation's first message, with the template's own system message if it has one.

    Args:
        leading: tokens that stand before every text anyway (TextEncoder.leading); the turn does not begin with them.
    Raises:
        ValueError: the tokenizer has no chat template, or one that does not hold a message once and as it is.
    """
    if not tokenizer.chat_template:
        raise ValueError(f"--chat_template: the tokenizer of {tokenizer.name_or_path} has none")
    conversation = [{"role": "user", "content": MESSAGE}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    before, *after = text.split(MESSAGE)
    if len(after) != 1:
        raise ValueError(f"--chat_template: the template of {tokenizer.name_or_path} makes of a message {text!r}")
    if tokenizer.bos_token_id in leading:
        before = before.removeprefix(tokenizer.bos_token)
    return Turn(before, after[0])


def as_messages(level: Level, turn: Turn) -> Level:
    """The level with everything that is asked, the examples too, in one message, and options as the model's answer.

    Source: lm-evaluation-harness, --apply_chat_template without --fewshot_as_multiturn.
    """
    return level._replace(prompts=[_as_message(prompt, turn) for prompt in level.prompts])


def _as_message(prompt: Prompt, turn: Turn) -> Prompt:
    options = prompt.options
    if turn.after[-1:].isspace():  # as after "<|im_start|>assistant\n", where an answer begins without a blank
        options = tuple(option.removeprefix(" ") for option in options)
    return prompt._replace(header=turn.before + prompt.header, question=prompt.question + turn.after, options=options)
