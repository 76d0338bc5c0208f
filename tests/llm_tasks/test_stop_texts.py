"""Answers up to a stop text, and whether continuations are the model's own choice: as transformers computes them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import slow_cases
from tiny_models import EACH, byte_level, continuations, make_model
from transformers import GenerationConfig, PreTrainedModel

from llm_tasks.engine import stop_texts
from llm_tasks.engine.answers import first_line
from llm_tasks.engine.encoding import Stop
from llm_tasks.engine.greedy import AnswerEnd, greedy_answers
from llm_tasks.engine.log_likelihood import Work, log_likelihoods
from llm_tasks.engine.packing import Continuation
from llm_tasks.engine.processes import ALONE
from llm_tasks.engine.stop_texts import answers_until, cut, not_obeyed
from llm_tasks.engine.ways import PLAIN
from llm_tasks.evaluation import Reading, generate, penalized
from llm_tasks.plan import computation


def chosen_tokens(model: PreTrainedModel, asked: list[Continuation]) -> list[Continuation]:
    """Each continuation with the tokens that the model chooses one by one in place of its own."""
    found = []
    for tokens, start in asked:
        row = list(tokens[:start])
        for _ in tokens[start:]:
            with torch.no_grad():
                row.append(model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax().item())
        found.append(Continuation(tuple(row), start))
    return found


@pytest.mark.parametrize("name", EACH)
def test_greedy_says_which_continuations_the_model_would_choose(name: str):
    model = make_model(name)
    drawn = continuations(1, 4)
    greedy = chosen_tokens(model, drawn)
    late = [one._replace(tokens=(*one.tokens[:-1], (one.tokens[-1] + 1) % 40)) for one in greedy]  # the last is another
    asked = [*greedy, *late, *drawn]
    found = log_likelihoods(model, asked, tokens_per_batch=64, greedy=True)
    wanted = [one == chosen for one, chosen in zip(asked, [*greedy, *greedy, *greedy], strict=True)]
    assert found.greedy.tolist() == wanted and wanted.count(True) >= len(greedy) and wanted.count(False) >= len(late)
    without = log_likelihoods(model, asked, tokens_per_batch=64)
    assert without.greedy is None and without.first_token.tolist() == found.first_token.tolist()
    np.testing.assert_array_equal(without.log_likelihood, found.log_likelihood)


def test_texts_are_cut_at_stops_by_hand():
    assert cut("Paris.\nQ: next", ["\n", "."]) == "Paris"
    assert cut("xab", ["b", "ab"]) == "xa"  # the second is looked for in what the first left
    assert cut("all of it", ["", "#"]) == "all of it" and cut("text", []) == "text"


PROMPTS = ["A B ab", "B", "d c b a: A", "A B ab", "s"]


@pytest.mark.parametrize(
    "changed", [{"repetition_penalty": 1.7}, *slow_cases({}, {"no_repeat_ngram_size": 2})], ids=str
)
def test_answers_are_those_of_generate(changed: dict[str, float]):
    model, tokenizer = make_model("llama"), byte_level(eos_token="</s>")
    # 24 is beyond the alphabet: an answer rarely ends by itself
    model.generation_config = GenerationConfig(eos_token_id=24, pad_token_id=24, **changed)
    prompts = [tuple(tokenizer.encode(text)) for text in PROMPTS]
    plain = []
    for prompt in prompts:
        row = model.generate(torch.tensor([prompt]), max_new_tokens=9, do_sample=False)[0].tolist()
        plain.append(tokenizer.decode(row[len(prompt) :], skip_special_tokens=True))
    common = max({letter for text in plain for letter in text}, key=lambda letter: sum(letter in own for own in plain))
    stops = [Stop((common, "</s>"), 9), Stop(("</s>",), 9), Stop((common,), 4), Stop((common, "</s>"), 9), Stop((), 3)]
    found, work = answers_until(model, tokenizer, prompts, stops, tokens_per_batch=60)
    whole, _ = answers_until(model, tokenizer, prompts, [Stop((), 9)] * len(prompts), tokens_per_batch=60)
    assert whole == plain and len(set(plain)) > 1
    assert found[:2] == [cut(plain[0], stops[0].texts), plain[1]] and found[3] == found[0]
    assert plain[4].startswith(found[4]) and work.computed >= work.distinct
    assert work.distinct >= sum(map(len, prompts[:3])) + len(prompts[4])  # of the prompts of all stops, one there twice
    if changed:
        model.generation_config = GenerationConfig(eos_token_id=24, pad_token_id=24)
        assert answers_until(model, tokenizer, prompts, [Stop((), 9)] * len(prompts), 60)[0] != plain


@pytest.mark.parametrize("changed", [{}, {"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}], ids=str)
def test_a_settings_own_answers_are_those_of_generate_one_by_one(changed: dict[str, float]):
    """Prompts of several lengths together, whose padding has no part in a penalty; and the letter of each."""
    model, tokenizer = make_model("llama"), byte_level(eos_token="</s>")
    model.generation_config = GenerationConfig(eos_token_id=24, pad_token_id=24, **changed)
    prompts = [tuple(tokenizer.encode(text)) for text in PROMPTS]
    rows = [model.generate(torch.tensor([prompt]), max_new_tokens=9, do_sample=False)[0].tolist() for prompt in prompts]
    plain = [row[len(prompt) :] for prompt, row in zip(prompts, rows, strict=True)]
    reading = Reading(max_new_tokens=9, tokens_per_batch=60)
    found, _ = generate(model, tokenizer, prompts, reading)
    assert found == [first_line(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in plain]
    asked = [Continuation((*prompt, 5, 6), len(prompt)) for prompt in prompts]
    scores = log_likelihoods(model, asked, tokens_per_batch=60)
    letters = penalized(model, asked, scores, reading, PLAIN, ALONE)
    assert letters.first_token.tolist() == [tokens[0] for tokens in plain]
    np.testing.assert_array_equal(letters.log_likelihood, scores.log_likelihood)


def test_a_special_token_that_is_no_end_of_text_stops_an_answer():
    """As <|im_end|> in a model whose texts end with <|endoftext|>."""
    model, tokenizer = make_model("llama"), byte_level(eos_token="</s>")
    model.generation_config = GenerationConfig(eos_token_id=24, pad_token_id=24)
    prompt, letters = tuple(tokenizer.encode("d c b a: A")), tokenizer.convert_ids_to_tokens
    (whole,), _ = greedy_answers(model, [prompt], AnswerEnd(5, lambda tokens: False), tokens_per_batch=60)
    assert letters(whole) == ["<s>", "c", ".", "c", "."]
    tokenizer.add_special_tokens({"additional_special_tokens": ["."]})
    assert answers_until(model, tokenizer, [prompt], [Stop((".",), 5)], tokens_per_batch=60)[0] == ["<s>c"]
    assert answers_until(model, tokenizer, [prompt], [Stop(("a",), 5)], tokens_per_batch=60)[0] == ["<s>cc"]


def test_every_answer_has_the_length_of_its_own_stop(monkeypatch: pytest.MonkeyPatch):
    asked: dict[tuple[int, ...], int] = {}

    def write(model: object, prompts: list, end: AnswerEnd, *more: object) -> tuple[list[list[int]], Work]:
        asked.update(dict.fromkeys(prompts, end.max_new_tokens))
        return [[4]] * len(prompts), Work(3, 2)

    monkeypatch.setattr(stop_texts, "greedy_answers", write)
    model = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=24))
    stops = [Stop((), 9), Stop(("a",), 3), Stop((), 9)]
    _, work = answers_until(model, byte_level(eos_token="</s>"), [(4,), (5,), (6,)], stops, tokens_per_batch=60)
    assert asked == {(4,): 9, (5,): 3, (6,): 9} and work == Work(6, 4)


def test_a_stop_text_is_seen_however_much_longer_it_is_than_the_others():
    tokenizer = byte_level(eos_token="</s>")
    finished = stop_texts._finished(tokenizer, Stop(("D", "bcdqrstbcdqrst"), 99), {2})
    tokens = tokenizer.encode("aabcdqrstbcdqrst", add_special_tokens=False)
    assert [finished(tokens[:count]) for count in (len(tokens) - 1, len(tokens))] == [False, True]


def test_what_would_change_answers_in_other_ways_is_named():
    assert not_obeyed(GenerationConfig(repetition_penalty=1.1, top_k=20, temperature=0.7, do_sample=True)) == []
    assert not_obeyed(GenerationConfig(num_beams=3, min_length=4)) == ["num_beams", "min_length"]
    model, tokenizer = make_model("llama"), byte_level(eos_token="</s>")
    model.generation_config = GenerationConfig(eos_token_id=24, num_beams=3)
    with pytest.raises(ValueError, match="generation config has num_beams: its answers would be others"):
        answers_until(model, tokenizer, [(4, 5)], [Stop((), 2)], tokens_per_batch=60)
    with pytest.raises(ValueError, match="generation config has num_beams: its answers would be others"):
        generate(model, tokenizer, [(4, 5)], Reading())
    with pytest.raises(ValueError, match="generation config has num_beams"):  # before anything is computed
        computation(model, torch.float32, "no", ("letter", "answer"))
    assert computation(model, torch.float32, "no", ("letter",)).engine_arithmetic == 1


def test_arithmetic_is_raised_where_penalties_are_obeyed_that_were_not():
    model = make_model("llama")
    model.generation_config = GenerationConfig(repetition_penalty=1.1)
    numbers = {
        readers: computation(model, torch.float32, "no", readers).engine_arithmetic
        for readers in (("answer",), ("generate",), ("letter",), ("perplexity",), ("lm_eval", "answer"))
    }
    assert list(numbers.values()) == [2, 2, 1, 1, 1]
    model.generation_config = GenerationConfig(repetition_penalty=1.0)
    assert computation(model, torch.float32, "no", ("answer",)).engine_arithmetic == 1
