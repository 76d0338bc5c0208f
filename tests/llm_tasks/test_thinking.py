"""Prompts that end inside a thought, and what a model writes after it."""

import logging
from types import SimpleNamespace

import pytest
from tiny_models import byte_level
from tokenizers import decoders

from llm_tasks import evaluation
from llm_tasks.engine.log_likelihood import Work
from llm_tasks.engine.thinking import HARMONY, TAGS, AnswerDecoder, after_thinking, closing_of, open_tags


@pytest.mark.parametrize("tags", TAGS, ids=lambda tags: tags.closing)
def test_an_open_block_is_seen_and_closed(tags):
    assert open_tags(f"user: hi{tags.opening}") is tags
    assert open_tags(f"{tags.opening}so{tags.closing}") is None
    assert open_tags(f"{tags.opening}so{tags.closing}{tags.opening}") is tags  # of a later turn
    closed = f"model:{tags.opening}" + closing_of(f"model:{tags.opening}")
    assert closed.rstrip().endswith(tags.closing) and open_tags(closed) is None and closing_of(closed) == ""


def test_a_block_is_closed_as_the_models_own_templates_do():
    # Qwen3 with enable_thinking=false: "<think>\\n\\n</think>\\n\\n"
    for opened in ("<think>", "<think>\n"):
        assert opened + closing_of(f"<|im_start|>assistant\n{opened}") == "<think>\n\n</think>\n\n"
    assert closing_of("<|end|><|start|>assistant") == "<|channel|>final<|message|>"


@pytest.mark.parametrize(
    "text", ["", "<|im_start|>assistant\n", "<think>\n\n</think>\n\n", "I <b>think</b>: ", "[INST]"]
)
def test_what_is_not_open_needs_nothing(text: str):
    assert closing_of(text) == ""


@pytest.mark.parametrize("text", ["<|assistant|><deep_think>", "a[REASONING]\n", "<|begin_of_reasoning|>"])
def test_a_block_that_nobody_knows_to_close_is_refused(text: str):
    with pytest.raises(ValueError, match=r"ends inside .*(deep_think|REASON|reason).*--chat_template_kwargs"):
        closing_of(text)


@pytest.mark.parametrize("text", ["<deep_think></deep_think>", "[/REASONING]", "<|end_of_reasoning|>", "<no_think>"])
def test_the_end_of_an_unknown_block_is_none(text: str):
    assert closing_of(text) == ""


@pytest.mark.parametrize(
    ("text", "inside", "answer"),
    [
        ("Paris\n", False, "Paris\n"),
        ("<think>Rome?\nNo.</think>\n\nParis", False, "\n\nParis"),
        ("Rome?\nNo.</think>Paris", True, "Paris"),
        ("<think>Rome?\nNo", False, None),
        ("Rome?\nNo", True, None),
        ("\n<think>\n", False, None),
        ("<think>a</think><think>b", False, None),
        ("<think>a</think><think>b</think>c", False, "c"),
        ("<think>a</think><thought>b</thought>c", False, "c"),
        ("<thought>a</thought><think>b</think>c", False, "c"),
        ("Paris, I <think>", False, "Paris, I <think>"),  # an answer came first
        ("[THINK]Rome[/THINK]Paris", False, "Paris"),
        ("<|channel|>analysis<|message|>Rome?<|end|><|start|>assistant", False, None),
        ("<|channel|>analysis<|message|>R<|end|><|start|>assistant<|channel|>final<|message|>Paris", False, "Paris"),
        ("", False, ""),
        ("", True, None),
    ],
)
def test_the_answer_is_what_follows_the_thought(text: str, inside: bool, answer: str | None):
    assert after_thinking(text, inside) == answer


def test_tags_among_the_special_tokens_are_seen_and_no_part_of_the_answer():
    tokenizer = byte_level(bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", HARMONY.opening]})

    def answer(text: str, inside: bool = False) -> str | None:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        return AnswerDecoder(tokenizer, {tokenizer.eos_token_id}, inside).answer(tokens)

    assert answer("[THINK]ab[/THINK]<s>ba</s>") == "ba"
    assert answer("[THINK]ab") is None
    assert answer("ab[/THINK]ba", inside=True) == "ba"
    assert answer("a<s>b</s>") == "ab"


def test_a_thinking_models_answer_ends_after_its_thought(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The first line of the thought ends nothing; one that never ends is an empty answer, and told."""
    tokenizer = byte_level(bos_token="<s>", eos_token="</s>")
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = "{{ messages[0]['content'] }}<think>\\n"
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=tokenizer.eos_token_id))
    written = ["q\nb:\nq</think>\nA: a\nb", "q\nb:\nq"]

    def write(model: object, prompts: list, end: evaluation.AnswerEnd, *_: object) -> tuple[list[list[int]], Work]:
        found = []
        for text in written:
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            ended = (count for count in range(1, len(tokens)) if end.is_finished(tokens[:count]))
            found.append(tokens[: next(ended, len(tokens))])
        return found, Work(0, 0)

    monkeypatch.setattr(evaluation, "greedy_answers", write)
    reading = evaluation.Reading(max_new_tokens=9, tokens_per_batch=64)
    prompt = tuple(tokenizer("q:<think>\n", add_special_tokens=False)["input_ids"])
    with caplog.at_level(logging.WARNING):
        texts, _ = evaluation.generate(model, tokenizer, [prompt, prompt], reading)
    assert texts == ["a", ""]
    assert "1 of 2 answers do not end their thinking in --max_new_tokens 9 and are empty" in caplog.text
    bare = tuple(tokenizer("q:", add_special_tokens=False)["input_ids"])
    assert evaluation.generate(model, tokenizer, [bare, bare], reading)[0] == ["q", "q"]
