"""Where an option begins for every kind of tokenizer, and what a prompt loses that is too long."""

import random

import pytest
from tiny_models import BEFORE, NOTHING, bpe, byte_level
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llm_tasks.engine import encoding
from llm_tasks.engine.encoding import EncodedLevel, TextEncoder, encode_levels, prompt_text
from llm_tasks.engine.packing import Continuation
from llm_tasks.levels import Level, Prompt

AROUND = "<s> $A </s>"


def metaspace(template: str = BEFORE) -> PreTrainedTokenizerFast:
    """Like Llama 2's: the text's first word gets a blank too."""
    pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first")
    return bpe([("▁", "A"), ("▁", "B"), ("▁", "q"), ("▁", "a")], pre_tokenizer, template, "▁", bos_token="<s>")


def pieces(tokenizer: PreTrainedTokenizerFast, continuation: Continuation) -> tuple[list[str], list[str]]:
    """What is given, and what is scored."""
    found = tokenizer.convert_ids_to_tokens(continuation.tokens)
    return found[: continuation.start], found[continuation.start :]


def split(tokenizer: PreTrainedTokenizerFast, context: str, option: str) -> tuple[list[str], list[str]]:
    (found,) = TextEncoder(tokenizer).continuations([(context, option)])
    return pieces(tokenizer, found)


def test_the_blank_before_an_option_is_scored_with_it():
    assert split(byte_level(), "q:", " A") == (["q", ":"], ["ĠA"])
    assert split(byte_level(), "q:", " ab") == (["q", ":"], ["Ġ", "ab"])
    assert split(metaspace(), "q:", " A") == (["<s>", "▁q", ":"], ["▁A"])
    assert split(metaspace(NOTHING), "q:", " A") == (["▁q", ":"], ["▁A"])


def test_blanks_at_the_end_of_a_context_are_the_options():
    assert split(byte_level(), "q: ", "A") == (["q", ":"], ["ĠA"])
    assert split(metaspace(), "q: ", "A") == (["<s>", "▁q", ":"], ["▁A"])


def test_a_line_end_stays_with_the_context():
    """As in "<|im_start|>assistant\n": the option's first token is what the model says first."""
    assert split(bpe([]), "q:\n", "A") == (["q", ":", "\n"], ["A"])


def test_a_token_over_the_boundary_is_scored_whole():
    """Cutting at the context's number of tokens would score nothing of "ab", and "d" alone of "bcd"."""
    assert split(bpe([("a", "b")]), "qa", "bA") == (["q"], ["ab", "A"])
    assert split(bpe([("c", "d"), ("b", "cd")]), "qb", "cd") == (["q"], ["bcd"])


def test_a_text_that_is_one_token_follows_the_first_token():
    """Nothing of the context is left to stand before it."""
    merges = [("q", "a")]
    assert split(bpe(merges, bos_token="<s>"), "q", "a") == (["<s>"], ["qa"])
    assert split(bpe(merges, template=BEFORE, bos_token="<s>"), "q", "a") == (["<s>"], ["qa"])


@pytest.mark.parametrize("template", [BEFORE, AROUND])
def test_special_tokens_stand_before_a_text_and_never_after(template: str):
    tokenizer = byte_level(template, bos_token="<s>", eos_token="</s>")
    assert split(tokenizer, "q:", " A") == (["<s>", "q", ":"], ["ĠA"])
    assert tokenizer.convert_ids_to_tokens(TextEncoder(tokenizer).encode(["q:"])["q:"]) == ["<s>", "q", ":"]
    assert split(tokenizer, "", " A") == (["<s>"], ["ĠA"])


def test_an_empty_context_is_the_first_token():
    """Begin of text if there is one, else end of text; added once."""
    assert split(byte_level(bos_token="<s>", eos_token="</s>"), "", " A") == (["<s>"], ["ĠA"])
    assert split(byte_level(eos_token="</s>"), " ", "A") == (["</s>"], ["ĠA"])
    assert split(byte_level(eos_token="</s>"), "q", " A") == (["q"], ["ĠA"])
    with pytest.raises(ValueError, match=r"' A' has no context, and the tokenizer has no begin or end of text token"):
        split(byte_level(), "", " A")


def test_an_option_without_a_token_is_refused():
    with pytest.raises(ValueError, match=r"the option '' adds no token to its context, 'q:'"):
        split(metaspace(), "q:", "")


def test_equal_texts_have_equal_tokens():
    encoder = TextEncoder(metaspace())
    pairs = [("q:", " A"), ("q:", " B"), ("q:", " A")]
    first, second, third = encoder.continuations(pairs)
    assert first == third != second and first.tokens[:3] == second.tokens[:3]
    assert encoder.encode(["b", "a", "b"]).keys() == {"a", "b"} and encoder.encode([]) == {}


@pytest.mark.parametrize("lines", ["\n", "\n\n"])
@pytest.mark.parametrize("marks", ["none", "bytes", "first", "always", "normalized"])
@pytest.mark.parametrize("merge", [None, ("\n", "q"), (":", "\n"), ("\n", "\n")])
def test_texts_that_begin_alike_have_the_tokens_that_they_have_alone(
    lines: str, marks: str, merge: tuple[str, str] | None
):
    """Examples of hundreds of characters, also with tokens that reach over the lines' ends, and some short texts."""
    blank = {"none": " ", "bytes": "Ġ"}.get(marks, "▁")
    merges = [("a", "b"), ("ab", "c"), (blank, "A"), (blank, "ab"), *([merge] if merge else [])]
    kinds = {"none": None, "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False),
             "first": pre_tokenizers.Metaspace("▁", prepend_scheme="first"),
             "always": pre_tokenizers.Metaspace("▁", prepend_scheme="always"), "normalized": None}  # fmt: skip
    if marks == "bytes":
        merges = [tuple(piece.replace("\n", "Ċ") for piece in pair) for pair in merges]
    tokenizer = bpe(merges, kinds[marks], BEFORE, blank, bos_token="<s>")
    if marks == "normalized":  # as Llama 2's is published
        marked = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.backend_tokenizer.normalizer = marked
    draw = random.Random(0)

    def text(count: int) -> str:
        return "".join(draw.choices("aabbcdqA  :", k=count)).strip()

    shots = [f"q{text(30)}:{lines}" for _ in range(20)]
    texts = ["", "q", "ab" * 200]
    for count in (0, 3, 10, 20, 20, 20, 20):
        context = "".join(shots[:count]) + f"q{text(draw.randrange(50))}:"
        texts += [context, *(f"{context} {text(3)}" for _ in range(3))]
    draw.shuffle(texts)
    assert TextEncoder(tokenizer).encode(texts) == {own: tuple(tokenizer(own)["input_ids"]) for own in texts}


def test_a_line_break_that_texts_share_may_be_one_token_with_what_follows_it():
    tokenizer = bpe([("\n", "q")])
    texts = ["ab:\n" * 80 + "a", "ab:\n" * 80 + "q"]
    assert TextEncoder(tokenizer).encode(texts) == {own: tuple(tokenizer(own)["input_ids"]) for own in texts}


# Overflow. In these every character is a token; options and what is fed are counted in the comments.

PLAIN = bpe([], bos_token="<s>")
STARTED = bpe([], template=BEFORE, bos_token="<s>")


def choice(item: str, num_shots: int = 3, question: str = "q:", header: str = "rr") -> Prompt:
    """Two tokens of header, four in each example, two in the question and in each option: 5 + 4 k are fed."""
    shots = tuple(f"{letter}{letter}:\n" for letter in "abcd"[:num_shots])
    return Prompt(item, "g", question, header, shots, (" A", " B"), 0)


def level(*prompts: Prompt, reader: str = "letter", name: str = "L") -> Level:
    return Level(name, 1.0, "set", reader, list(prompts), facts={"built": 3})


def fit(
    *levels: Level, length: int, overflow: str = "drop_shots", tokenizer: PreTrainedTokenizerFast = PLAIN, new: int = 4
) -> list[EncodedLevel]:
    return encode_levels(levels, TextEncoder(tokenizer), length, new, overflow)


def text_of(encoded: EncodedLevel, index: int = 0, tokenizer: PreTrainedTokenizerFast = PLAIN) -> str:
    """The first option's text, or the context before an answer."""
    tokens = encoded.contexts[index] if encoded.contexts else encoded.continuations[index][0].tokens
    return tokenizer.decode(tokens)


def test_what_fits_stays_as_it_is():
    """2 + 3 * 4 + 2 + 2 tokens, of which the last is never fed: 17."""
    for overflow in ("drop_shots", "truncate_left", "skip"):
        (whole,) = fit(level(choice("i")), length=17, overflow=overflow)
        assert text_of(whole) == "rraa:\nbb:\ncc:\nq: A" and (whole.shortened, whole.skipped) == (0, 0)
        assert [len(option.tokens) for option in whole.continuations[0]] == [18, 18]
        assert whole.contexts == [] and whole.level.facts == {"built": 3}


@pytest.mark.parametrize(
    ("length", "left"), [(16, "rraa:\nbb:\nq: A"), (13, "rraa:\nbb:\nq: A"), (12, "rraa:\nq: A"), (5, "rrq: A")]
)
def test_the_last_examples_are_dropped_whole(length: int, left: str):
    (cut,) = fit(level(choice("i")), length=length)
    assert text_of(cut) == left and (cut.shortened, cut.skipped) == (1, 0)
    assert all(len(option.tokens) - 1 <= length for option in cut.continuations[0])
    assert {option.start for option in cut.continuations[0]} == {len(left) - 2}


def test_the_beginning_is_cut_to_the_models_length_and_never_the_question():
    for length, left in [(16, "raa:\nbb:\ncc:\nq: A"), (7, "cc:\nq: A"), (3, "q: A")]:
        (cut,) = fit(level(choice("i")), length=length, overflow="truncate_left")
        assert text_of(cut) == left and len(left) - 1 == length
        assert {option.start for option in cut.continuations[0]} == {len(left) - 2} and cut.shortened == 1
    with pytest.raises(ValueError, match="none of its 1 prompts fits into the 2 tokens"):
        fit(level(choice("i")), length=2, overflow="truncate_left")


def test_the_leading_special_tokens_survive_the_cut():
    (cut,) = fit(level(choice("i")), length=8, overflow="truncate_left", tokenizer=STARTED)
    assert text_of(cut, tokenizer=STARTED) == "<s>cc:\nq: A"
    answer = Prompt("i", "g", "q:", "abcd\n", answers=("a",))
    (cut,) = fit(level(answer, reader="answer"), length=8, new=4, overflow="truncate_left", tokenizer=STARTED)
    assert text_of(cut, tokenizer=STARTED) == "<s>\nq:" and cut.continuations == []


def test_the_question_stays_whole_where_it_is_more_tokens_behind_a_text_than_alone():
    """Alone it is ▁aa b, behind a line's end a a b."""
    marks = pre_tokenizers.Metaspace("▁", prepend_scheme="first")
    tokenizer = bpe([("▁", "a"), ("▁a", "a")], marks, BEFORE, "▁", bos_token="<s>")
    assert len(TextEncoder(tokenizer).encode(["aab"])["aab"]) == 3
    prompt = Prompt("i", "g", "aab", "rr\n", options=(" A", " B"), gold=0)
    (cut,) = fit(level(prompt), length=5, overflow="truncate_left", tokenizer=tokenizer)
    assert pieces(tokenizer, cut.continuations[0][0]) == (["<s>", "a", "a", "b"], ["▁", "A"])
    with pytest.raises(ValueError, match="fits into the 4 tokens"):
        fit(level(prompt), length=4, overflow="truncate_left", tokenizer=tokenizer)


def test_a_token_that_reaches_into_the_question_is_not_cut():
    tokenizer = bpe([("\n", "q")], bos_token="<s>")
    for length, left in [(6, "cc:\nq: A"), (4, ":\nq: A"), (3, "\nq: A")]:
        (cut,) = fit(level(choice("i")), length=length, overflow="truncate_left", tokenizer=tokenizer)
        assert text_of(cut, tokenizer=tokenizer) == left
    with pytest.raises(ValueError, match="fits into the 2 tokens"):
        fit(level(choice("i")), length=2, overflow="truncate_left", tokenizer=tokenizer)


def test_skip_leaves_out_what_is_too_long():
    kept, long = choice("kept", 1), choice("long", 3)
    (left,) = fit(level(kept, long), length=9, overflow="skip")
    assert [prompt.item for prompt in left.level.prompts] == ["kept"] and (left.shortened, left.skipped) == (0, 1)
    assert text_of(left) == "rraa:\nq: A"


def test_dropping_examples_does_not_cut_headers():
    """A document that is too long leaves the item out."""
    (left,) = fit(level(choice("short"), choice("long", header="r" * 20)), length=12)
    assert [prompt.item for prompt in left.level.prompts] == ["short"] and (left.shortened, left.skipped) == (1, 1)


def test_an_item_that_is_too_long_at_one_level_is_gone_at_all():
    easy = level(choice("one", 0), choice("two", 0), choice("three", 0), name="easy")
    hard = level(choice("two", 3), choice("three", 1), choice("one", 1), name="hard")
    first, second = fit(easy, hard, length=10, overflow="skip")
    assert [prompt.item for prompt in first.level.prompts] == ["one", "three"]
    assert [prompt.item for prompt in second.level.prompts] == ["three", "one"]
    assert (first.skipped, second.skipped) == (1, 1)
    assert len(first.continuations) == len(second.continuations) == 2
    assert text_of(second, 1) == "rraa:\nq: A"


def test_a_skipped_item_does_not_count_as_shortened():
    shortened = level(choice("one", 3), choice("two", 3), name="easy")
    impossible = level(choice("one", 0, header="r" * 30), choice("two", 0), name="hard")
    first, _ = fit(shortened, impossible, length=12)
    assert (first.shortened, first.skipped) == (1, 1)


@pytest.mark.parametrize("overflow", ["drop_shots", "truncate_left", "skip"])
def test_nothing_left_names_the_option_and_the_length(overflow: str):
    with pytest.raises(
        ValueError,
        match=rf"level 'L' of set: none of its 2 prompts fits into the 3 tokens .*\(--overflow {overflow}\)",
    ):
        fit(level(choice("one", question="abcd:"), choice("two", question="dcba:")), length=3, overflow=overflow)


def test_room_is_left_for_the_answer():
    """5 + 2 tokens and an answer of 4 are 11."""
    answer = Prompt("i", "g", "q:", "abcd\n", answers=("a",))
    (fits,) = fit(level(answer, reader="answer"), length=11, overflow="skip")
    assert text_of(fits) == "abcd\nq:" and len(fits.contexts) == 1 and fits.continuations == []
    (cut,) = fit(level(answer, reader="answer"), length=10, overflow="truncate_left")
    assert text_of(cut) == "bcd\nq:" and cut.shortened == 1
    with pytest.raises(ValueError, match="fits into the 10 tokens that the model takes, 4 of them for the answer"):
        fit(level(answer, reader="answer"), length=10, overflow="skip")
    # Options need no such room.
    fit(level(choice("i", 0)), length=5, new=100)


def test_the_longest_option_decides():
    prompt = Prompt("i", "g", "q:", "r", ("ab:\n",), (" A", " abcd"), 0)
    (cut,) = fit(level(prompt, reader="cloze"), length=10)  # 1 + 4 + 2 + 5 - 1 = 11
    assert text_of(cut) == "rq: A" and [len(option.tokens) for option in cut.continuations[0]] == [5, 8]


def test_prompt_text_by_number_of_examples():
    prompt = choice("i", 2)
    assert [prompt_text(prompt, count) for count in (None, 2, 1, 0)] == [
        "rraa:\nbb:\nq:", "rraa:\nbb:\nq:", "rraa:\nq:", "rrq:"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["byte level", "metaspace"])
def test_texts_that_begin_alike_are_tokenised_as_by_themselves(kind: str):
    words = ["Question:", "Which", "gas", "do", "plants", "take", "in?\nAnswer:", "oxygen", "dioxide\n\n"]
    draw = random.Random(0)
    byte_level = kind == "byte level"
    tokenizer = Tokenizer(models.BPE(byte_fallback=not byte_level))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if byte_level else None
    tokenizer.normalizer = None if byte_level else normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )  # fmt: skip
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([" ".join(draw.choices(words, k=500))], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    examples = "".join(" ".join(draw.choices(words, k=9)) + "\n\n" for _ in range(12))
    questions = [f"{examples}Question: {draw.choice(words)} {number}?\nAnswer:" for number in range(6)]
    texts = [text + option for text in questions for option in ("", " A", " B", " oxygen")] + ["short", ""]
    found = TextEncoder(fast).encode(texts)
    assert len(examples) > encoding.SHARED_CHARACTERS
    assert found == {text: tuple(fast(text, add_special_tokens=False)["input_ids"]) for text in texts}
