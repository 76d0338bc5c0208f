"""Requests of lm-evaluation-harness as tokens, by hand: what is scored, moved, put before and cut."""

import pytest
from tiny_models import AROUND, BEFORE, byte_level

from llm_tasks.engine.request_tokens import RequestEncoder


def test_white_space_moves_and_a_token_across_the_boundary_is_not_scored():
    tokenizer = byte_level(bos_token="<s>", eos_token="</s>")

    def ids(*pieces: str) -> tuple[int, ...]:
        return tuple(tokenizer.convert_tokens_to_ids(list(pieces)))

    encoder = RequestEncoder(tokenizer, 20)
    plain, moved, across, alone, begun = encoder.continuations(
        [("c", " A"), ("c \n ", "B"), ("ca", "bd"), ("", "ab"), ("", "<s>ab")]
    )
    assert plain == (ids("c", "ĠA"), 1)
    assert moved == (ids("c", "Ġ", "Ċ", "ĠB"), 1)  # line breaks move too
    assert across == (ids("c", "a", "d"), 2)  # "ab" is one token: lm-eval scores what is beyond the context's two
    assert alone == (ids("<s>", "ab"), 1)
    assert begun == (ids("<s>", "ab"), 1)  # its own first token is the context


def test_special_tokens_are_as_the_tokenizer_adds_them():
    tokenizer = byte_level(BEFORE, bos_token="<s>", eos_token="</s>")
    start, end = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    first, letter = tokenizer.convert_tokens_to_ids(["c", "d"])
    encoder = RequestEncoder(tokenizer, 20)
    assert encoder.continuations([("c", "d"), ("<s>c", "d")]) == [((start, first, letter), 2)] * 2  # never twice
    assert encoder.prompts(["c", "<s>c"], [1, 1]) == [(start, first)] * 2
    bare = RequestEncoder(tokenizer, 20, add_bos_token=False)
    assert bare.continuations([("c", "d")]) == [((first, letter), 1)] and bare.prompts(["c"], [1]) == [(first,)]
    assert RequestEncoder(tokenizer, 20, prefix_token_id=end).continuations([("", "c")]) == [((end, first), 1)]
    around = RequestEncoder(byte_level(AROUND, bos_token="<s>", eos_token="</s>"), 20)
    assert around.tokens_of(["c"]) == {"c": (start, first, end)}  # kept, as lm-eval keeps them


def test_long_requests_lose_their_beginning_and_are_counted():
    tokenizer = byte_level(eos_token="</s>")
    encoder = RequestEncoder(tokenizer, 4)
    letters = tokenizer.encode("abcdqrst".replace("ab", "a"))
    (long,) = encoder.continuations([("acdqrs", "t")])
    assert long == (tuple(letters[-5:]), 4) and encoder.cut == 1
    assert encoder.prompts(["acdqrst", "ac"], [2, 2]) == [tuple(letters[-2:]), tuple(letters[:2])] and encoder.cut == 2
    with pytest.raises(ValueError, match="4 new tokens are asked for; the model takes 4 in all"):
        encoder.prompts(["a"], [4])
    with pytest.raises(ValueError, match="has 5 tokens; 1 to 4 can be scored"):
        encoder.continuations([("a", "cdqrs")])
    with pytest.raises(ValueError, match="has 0 tokens"):
        encoder.continuations([("a", "")])
    with pytest.raises(ValueError, match="nothing but white space"):
        encoder.continuations([("\n", "a")])


def test_every_token_of_a_long_text_is_scored_once_with_as_much_before_it_as_fits():
    tokenizer = byte_level(eos_token="</s>")
    encoder = RequestEncoder(tokenizer, 4)
    text = "acdqrstacd"
    tokens = tuple(tokenizer.encode(text))
    (end,) = tokenizer.convert_tokens_to_ids(["</s>"])
    (windows, nothing, short) = encoder.windows([text, "", "ac"])
    assert windows == [((end, *tokens[:4]), 1), (tokens[3:8], 1), (tokens[5:10], 3)]
    assert nothing == [] and short == [((end, *tokens[:2]), 1)]
    scored = [token for part, start in windows for token in part[start:]]
    assert tuple(scored) == tokens
