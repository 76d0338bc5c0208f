"""Prompts as a user's message in the model's chat template, for models that were tuned on such messages."""

import functools
import inspect
import json
from collections.abc import Mapping
from datetime import date
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.meta
from transformers import PreTrainedTokenizerBase

from llm_tasks.engine.packing import Tokens
from llm_tasks.engine.thinking import closing_of
from llm_tasks.levels import Level, Prompt

MESSAGE = "MESSAGE"
DAY = date(2024, 7, 26)  # today, in every prompt: the date that Llama 3's own template has where it knows no other
DIRECTIVES = "aAbBcCdDeFfgGhHIjmMnprRStTuUVwWxXyYzZ"  # of strftime


class Turn(NamedTuple):
    """What a chat template puts around a user's message.

    Fields:
        before: text before the message.
        after: text after it, up to the beginning of the model's answer.
        closing: text that closes a thinking block which `after` opens; added where options are scored.
    """

    before: str
    after: str
    closing: str = ""


def template_values(text: str) -> str:
    """Check a value of --chat_template_kwargs, a JSON object; returns it with sorted keys.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{text!r} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"""{text!r} is no JSON object, such as {{"enable_thinking": false}}""")
    return json.dumps(values, sort_keys=True)


class _Generation(jinja2.ext.Extension):
    """transformers' tag around what an assistant says."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def variables(template: str) -> set[str]:
    """Names that a chat template reads and does not set itself before.

    Raises:
        jinja2.TemplateSyntaxError: it is no template.
    """
    syntax = jinja2.Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"])
    return jinja2.meta.find_undeclared_variables(syntax.parse(template))


def check_values(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any]) -> None:
    """Check that the chat template reads every value.

    Raises:
        ValueError: it does not read one (the message names it).
        jinja2.TemplateSyntaxError: the template is damaged.
    """
    taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) - {"tools", "documents"}
    read = variables(tokenizer.get_chat_template()) - {"strftime_now", "raise_exception"}  # functions of transformers
    for name in values:
        if name in taken:
            raise ValueError(
                f"--chat_template_kwargs: {name} is an argument of apply_chat_template, not of the template"
            )
        if name not in read:
            raise ValueError(
                f"--chat_template_kwargs: the chat template of {tokenizer.name_or_path} does not read {name!r}"
            )


def in_template(
    tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]], values: Mapping[str, Any],
    day: date = DAY, **how: Any,
) -> str:  # fmt: skip
    """A conversation in the chat template, in which today is always the same day: a run is the same tomorrow.

    Args:
        values: that the template reads.
        how: arguments of apply_chat_template.
    """
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:  # transformers' function that reads the clock
        template = _clock(day) + template
    return tokenizer.apply_chat_template(conversation, tokenize=False, chat_template=template, **how, **values)


@functools.cache
def _clock(day: date) -> str:
    """A macro that takes the place of strftime_now and knows this day alone; the line after it begins a template."""
    names = [f"%{flag}{letter}" for flag in ("", "-") for letter in DIRECTIVES]
    values = json.dumps({name: day.strftime(name) for name in names})
    return (
        "{% macro strftime_now(format) %}{% for part in format.split('%%') %}{% set own = namespace(text=part) %}"
        f"{{% for name, value in {values}.items() %}}{{% set own.text = own.text.replace(name, value) %}}{{% endfor %}}"
        "{{ '' if loop.first else '%' }}{{ own.text }}{% endfor %}{% endmacro %}\n"
    )


def date_written(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any]) -> str | None:
    """The day that the chat template writes in the place of today; None where it writes none.

    Raises:
        ValueError: see user_turn.
    """
    texts = {_message_in_template(tokenizer, values, day) for day in (DAY, date(1999, 12, 31))}
    return str(DAY) if len(texts) > 1 else None


def _message_in_template(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any], day: date) -> str:
    """A user's MESSAGE in the chat template; errors as in user_turn."""
    if not tokenizer.chat_template:
        raise ValueError(f"--chat_template: the tokenizer of {tokenizer.name_or_path} has none")
    conversation = [{"role": "user", "content": MESSAGE}]
    try:
        check_values(tokenizer, values)
        return in_template(tokenizer, conversation, values, day, add_generation_prompt=True)
    except (jinja2.TemplateError, TypeError, ImportError) as error:
        raise ValueError(
            f"--chat_template: the template of {tokenizer.name_or_path} fails on a user's message: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def user_turn(tokenizer: PreTrainedTokenizerBase, leading: Tokens, values: Mapping[str, Any] | None = None) -> Turn:
    """What the chat template puts around the first message of a conversation, its default system message included.

    Args:
        leading: tokens before every text (TextEncoder.leading), with which the turn does not begin again.
        values: arguments of the template, such as {"enable_thinking": False}.
    Raises:
        ValueError: the tokenizer has no chat template, it fails, does not contain the message exactly once and
            unchanged, or ends inside a thinking block whose closing tag is not known.
    """
    text = _message_in_template(tokenizer, values or {}, DAY)
    before, *after = text.split(MESSAGE)
    if len(after) != 1:
        raise ValueError(
            f"--chat_template: the template of {tokenizer.name_or_path} does not contain a message once: {text!r}"
        )
    if tokenizer.bos_token_id in leading:
        before = before.removeprefix(tokenizer.bos_token)
    try:
        return Turn(before, after[0], closing_of(after[0]))
    except ValueError as error:
        raise ValueError(f"--chat_template: the template of {tokenizer.name_or_path} {error}") from error


def as_messages(level: Level, turn: Turn) -> Level:
    """The level with each prompt, its few-shot examples included, as one user message, and options as the answer.

    A model that generates its answer may think before it; where options are scored, an open thinking block is closed.

    Source: lm-evaluation-harness, --apply_chat_template without --fewshot_as_multiturn.
    """
    after = turn.after if level.reader == "answer" else turn.after + turn.closing
    return level._replace(prompts=[_as_message(prompt, turn.before, after) for prompt in level.prompts])


def _as_message(prompt: Prompt, before: str, after: str) -> Prompt:
    options = prompt.options
    if after[-1:].isspace():  # as in "<|im_start|>assistant\n": the answer begins without a space
        options = tuple(option.removeprefix(" ") for option in options)
    return prompt._replace(header=before + prompt.header, question=prompt.question + after, options=options)
