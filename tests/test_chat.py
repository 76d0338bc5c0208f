"""llm_tasks/chat.py: what a template puts around a message, and prompts as such messages."""

import pytest
from test_encoding import BEFORE, NOTHING, byte_level
from transformers import PreTrainedTokenizerFast

from llm_tasks.chat import Turn, as_messages, user_turn
from llm_tasks.encoding import TextEncoder, prompt_text
from llm_tasks.prompts import Level, Prompt

CHATML = (
    "{% for message in messages %}{{ '<' + message['role'] + '>\n' + message['content'] + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
)
VICUNA = "{{ bos_token }}Be kind. {% for message in messages %}USER: {{ message['content'] }} {% endfor %}ASSISTANT:"

CHOICE = Prompt("i", "g", "q:", "about", ("a: B\n", "b: A\n"), (" A", " B"), gold=1)
ANSWER = Prompt("j", "g", "q:", answers=("a",))


def with_template(template: str | None, before: str = NOTHING, **tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts `before` before every text."""
    tokenizer = byte_level(before, **tokens)
    tokenizer.chat_template = template
    return tokenizer


def turn_of(tokenizer: PreTrainedTokenizerFast) -> Turn:
    return user_turn(tokenizer, TextEncoder(tokenizer).leading)


def in_messages(prompt: Prompt, tokenizer: PreTrainedTokenizerFast) -> Prompt:
    level = as_messages(Level("easy", 0.0, "mine", "cloze", [prompt]), turn_of(tokenizer))
    return level.prompts[0]


def test_a_turn_is_what_stands_around_the_message():
    assert turn_of(with_template(CHATML)) == Turn("<user>\n", "<end>\n<assistant>\n")


def test_a_first_token_that_the_tokenizer_puts_itself_is_not_doubled():
    assert turn_of(with_template(VICUNA, BEFORE, bos_token="<s>")) == Turn("Be kind. USER: ", " ASSISTANT:")
    assert turn_of(with_template(VICUNA, bos_token="<s>")).before == "<s>Be kind. USER: "


@pytest.mark.parametrize("template", [CHATML, VICUNA])
@pytest.mark.parametrize("prompt", [CHOICE, ANSWER])
def test_prompts_read_as_the_template_makes_them(template: str, prompt: Prompt):
    tokenizer = with_template(template, bos_token="<s>")
    message = [{"role": "user", "content": prompt_text(prompt)}]
    expected = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert prompt_text(in_messages(prompt, tokenizer)) == expected


def test_examples_stay_apart_so_that_they_can_be_shared_and_dropped():
    wrapped = in_messages(CHOICE, with_template(CHATML))
    assert (wrapped.item, wrapped.group, wrapped.shots, wrapped.gold) == ("i", "g", ("a: B\n", "b: A\n"), 1)


def test_an_option_has_a_blank_before_it_only_where_the_template_leaves_none():
    assert in_messages(CHOICE, with_template(CHATML)).options == ("A", "B")
    assert in_messages(CHOICE, with_template(VICUNA, bos_token="<s>")).options == (" A", " B")


def test_the_line_end_of_a_template_is_given_and_the_letter_alone_is_scored():
    tokenizer = with_template(CHATML)
    wrapped = in_messages(CHOICE, tokenizer)
    (found,) = TextEncoder(tokenizer).continuations([(prompt_text(wrapped), wrapped.options[0])])
    assert tokenizer.convert_ids_to_tokens(found.tokens)[found.start - 1 :] == ["Ċ", "A"]


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0]['content'] | lower }}", "{{ messages[0]['content'] }}, {{ messages[0]['content'] }}", "Hello."],
)
def test_a_template_that_does_not_hold_the_message_once_and_as_it_is_is_refused(template: str):
    with pytest.raises(ValueError, match=r"--chat_template: the template of .* makes of a message"):
        turn_of(with_template(template))


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(ValueError, match=r"--chat_template: the tokenizer of .* has none"):
        turn_of(with_template(None))
