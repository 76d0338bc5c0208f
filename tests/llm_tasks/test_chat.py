"""What a template puts around a message, and prompts as such messages."""

from datetime import date

import pytest
from tiny_models import BEFORE, NOTHING, byte_level
from transformers import PreTrainedTokenizerFast

from llm_tasks.engine.chat import Turn, as_messages, date_written, template_values, user_turn
from llm_tasks.engine.encoding import TextEncoder, prompt_text
from llm_tasks.levels import Level, Prompt

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
    with pytest.raises(ValueError, match=r"--chat_template: the template of .* does not contain a message once"):
        turn_of(with_template(template))


THINKING = CHATML.replace("<assistant>\n'", "<assistant>\n' + ('<think>\n' if thinks | default(true) else '')")


def test_options_are_scored_after_a_thought_that_the_template_opens_and_answers_begin_with_it():
    tokenizer = with_template(THINKING)
    assert turn_of(tokenizer) == Turn("<user>\n", "<end>\n<assistant>\n<think>\n", "\n</think>\n\n")
    for prompt, reader, end in [
        (CHOICE, "letter", "<think>\n\n</think>\n\n"),
        (CHOICE, "cloze", "<think>\n\n</think>\n\n"),
        (CHOICE, "generate", "<think>\n\n</think>\n\n"),
        (ANSWER, "answer", "<think>\n"),
    ]:
        (found,) = as_messages(Level("easy", 0.0, "mine", reader, [prompt]), turn_of(tokenizer)).prompts
        assert prompt_text(found).endswith(f"<assistant>\n{end}")


def test_values_reach_the_template():
    tokenizer = with_template(THINKING)
    turn = user_turn(tokenizer, (), {"thinks": False})
    assert turn == Turn("<user>\n", "<end>\n<assistant>\n")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"enable_thinking": False}, "does not read 'enable_thinking'"),
        ({"think": False}, "does not read 'think'"),  # it has the texts "thinks" and "<think>"
        ({"message": "Hello."}, "does not read 'message'"),  # it is set by a loop
        ({"strftime_now": "today"}, "does not read 'strftime_now'"),
        ({"tokenize": True}, "tokenize is an argument of apply_chat_template"),
        ({"add_generation_prompt": False}, "add_generation_prompt is an argument of apply_chat_template"),
    ],
)
def test_values_that_the_template_does_not_read_are_refused(values: dict, said: str):
    with pytest.raises(ValueError, match=f"--chat_template_kwargs: .*{said}"):
        user_turn(with_template(THINKING), (), values)


def test_what_templates_of_today_are_written_with_is_read():
    """A default that the template sets itself, loop controls, and the tag around what an assistant says."""
    template = (
        "{% set effort = effort if effort is defined else 'low' %}{% for m in messages %}{% if m.skip %}{% break %}"
        "{% endif %}{% generation %}{{ m['content'] + effort }}{% endgeneration %}{% endfor %}"
    )
    assert user_turn(with_template(template), (), {"effort": "high"}) == Turn("", "high")
    with pytest.raises(ValueError, match="does not read 'm'"):
        user_turn(with_template(template), (), {"m": "high"})


# The lines of Llama 3.2's template that write the date.
DATED = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('FORMAT') "
    "%}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}Today: {{ date_string }}\n"
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
)


@pytest.mark.parametrize(
    "form", ["%d %b %Y", "%Y-%m-%d", "%-d. %B %y", "%A, %H:%M", "%Y%%%d%", "%%d", "on day %j", "", "%e.%m\n%c"]
)
def test_a_template_writes_the_same_date_on_every_day(form: str):
    tokenizer = with_template(DATED.replace("FORMAT", form.replace("\n", "\\n")))
    assert turn_of(tokenizer) == Turn(f"Today: {date(2024, 7, 26).strftime(form)}\n", "")
    assert user_turn(tokenizer, (), {"date_string": "today"}) == Turn("Today: today\n", "")


@pytest.mark.parametrize("start", ["  {% if true %}\n  {% endif %}", "\n\n", " \n {{ 1 }}", "{%- set x = 1 %}"])
def test_white_space_at_the_start_of_a_template_stays_as_it_is(start: str):
    template = start + "{{ messages[0]['content'] }}"
    assert turn_of(with_template(template + "{# strftime_now #}")) == turn_of(with_template(template))


@pytest.mark.parametrize(
    ("template", "values", "day"),
    [
        (DATED.replace("FORMAT", "%d %b %Y"), {}, "2024-07-26"),
        ("{{ strftime_now('%m')|int + 1 }} {{ messages[0]['content'] }}", {}, "2024-07-26"),
        ("{% macro today() %}{{ strftime_now('%Y') }}{% endmacro %}{{ messages[0]['content'] }}{{ today() }}", {},
         "2024-07-26"),
        (DATED.replace("FORMAT", "%d %b %Y"), {"date_string": "1 Jan 2025"}, None),
        ("{% if tools %}{{ strftime_now('%Y') }}{% endif %}{{ messages[0]['content'] }}", {}, None),
        (CHATML, {}, None),
    ],
)  # fmt: skip
def test_the_date_that_is_written_is_known(template: str, values: dict, day: str | None):
    assert date_written(with_template(template), values) == day


@pytest.mark.parametrize("text", ["[1]", "true", "{", "{'a': 1}", '"a"', ""])
def test_values_are_a_json_object(text: str):
    with pytest.raises(ValueError, match="is no JSON"):
        template_values(text)
    assert template_values('{"b": 1,  "a": null}') == '{"a": null, "b": 1}'


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "TemplateError: roles must alternate"),
        ("{{ messages[0]['content'] ", "TemplateSyntaxError"),
        ("{{ messages[0].name.upper() }}", "UndefinedError"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ messages[0]['content'] }}<deep_think>", "ends inside <deep_think>"),
    ],
)
def test_a_template_that_fails_is_one_clear_line(template: str, said: str):
    with pytest.raises(ValueError, match=r"--chat_template: the template of .*" + said) as refusal:
        turn_of(with_template(template))
    assert "\n" not in str(refusal.value)


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(ValueError, match=r"--chat_template: the tokenizer of .* has none"):
        turn_of(with_template(None))
