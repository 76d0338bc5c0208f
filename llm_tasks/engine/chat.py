"""Prompts as a user's message in the model's own chat template, for models that were tuned to answer such messages."""

import inspect
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase

from llm_tasks.engine.packing import Tokens
from llm_tasks.engine.thinking import closing_of
from llm_tasks.levels import Level, Prompt

MESSAGE = "MESSAGE"


class Turn(NamedTuple):
    """What a chat template puts before a user's message, and after it up to where the model begins to write.

    Fields:
        before, after: the message.
        closing: stands after that where an answer is scored: it closes a thinking block that the template opens.
    """

    before: str
    after: str
    closing: str = ""


def template_values(text: str) -> str:
    """The value of --chat_template_kwargs: a JSON object, in one spelling.

    Raises:
        ValueError: it is none.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{text!r} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"""{text!r} is no JSON object, such as {{"enable_thinking": false}}""")
    return json.dumps(values, sort_keys=True)


def check_values(tokenizer: PreTrainedTokenizerBase, template: str, values: Mapping[str, Any]) -> None:
    """Every value is one that the template reads.

    Raises:
        ValueError: names the one that is not.
    """
    taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) - {"tools", "documents"}
    for name in values:
        if name in taken:
            raise ValueError(f"--chat_template_kwargs: {name} is not the template's to read")
        if name not in template:
            raise ValueError(
                f"--chat_template_kwargs: the chat template of {tokenizer.name_or_path} does not read {name!r}"
            )


def user_turn(tokenizer: PreTrainedTokenizerBase, leading: Tokens, values: Mapping[str, Any] | None = None) -> Turn:
    """The turn of a conversation's first message, with the template's own system message if it has one.

    Args:
        leading: tokens that stand before every text anyway (TextEncoder.leading); the turn does not begin with them.
        values: handed to the template, such as {"enable_thinking": False}.
    Raises:
        ValueError: the tokenizer has no chat template, one that does not hold a message once and as it is, one that
            fails, or that ends inside a thinking block which nobody knows how to close.
    """
    if not tokenizer.chat_template:
        raise ValueError(f"--chat_template: the tokenizer of {tokenizer.name_or_path} has none")
    values = values or {}
    conversation = [{"role": "user", "content": MESSAGE}]
    try:
        check_values(tokenizer, tokenizer.get_chat_template(), values)
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True, **values)
    except (jinja2.TemplateError, TypeError, ImportError) as error:
        raise ValueError(
            f"--chat_template: the template of {tokenizer.name_or_path} makes nothing of a user's message: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    before, *after = text.split(MESSAGE)
    if len(after) != 1:
        raise ValueError(f"--chat_template: the template of {tokenizer.name_or_path} makes of a message {text!r}")
    if tokenizer.bos_token_id in leading:
        before = before.removeprefix(tokenizer.bos_token)
    try:
        return Turn(before, after[0], closing_of(after[0]))
    except ValueError as error:
        raise ValueError(f"--chat_template: the template of {tokenizer.name_or_path} {error}") from error


def as_messages(level: Level, turn: Turn) -> Level:
    """The level with everything that is asked, the examples too, in one message, and options as the model's answer.

    Where the model writes its answer it may think first; where options are scored a thinking block is closed.

    Source: lm-evaluation-harness, --apply_chat_template without --fewshot_as_multiturn.
    """
    after = turn.after if level.reader == "answer" else turn.after + turn.closing
    return level._replace(prompts=[_as_message(prompt, turn.before, after) for prompt in level.prompts])


def _as_message(prompt: Prompt, before: str, after: str) -> Prompt:
    options = prompt.options
    if after[-1:].isspace():  # as after "<|im_start|>assistant\n", where an answer begins without a blank
        options = tuple(option.removeprefix(" ") for option in options)
    return prompt._replace(header=before + prompt.header, question=prompt.question + after, options=options)
