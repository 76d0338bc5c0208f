"""Metrics, chance and standard errors of a model whose every probability is known."""

import logging
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from llm_tasks import evaluation
from llm_tasks.engine.encoding import EncodedLevel, TextEncoder, encode_levels
from llm_tasks.engine.log_likelihood import Scores, Work
from llm_tasks.engine.processes import ALONE
from llm_tasks.engine.ways import PLAIN
from llm_tasks.evaluation import Evaluation, Reading
from llm_tasks.levels import Level, Prompt

WORDS = ["A", "B", "C", "D", "USA", "ask", "say", "name", "rome", "no", "way", "mute"]
VOCABULARY = ["<unk>", "<s>", "</s>", "\n", *WORDS]
# How often a token follows another, where that is not once: after "ask" A has 5 of 22, B 3.
FOLLOWERS = {
    "ask": {"A": 5, "B": 3},
    "say": {"rome": 7, "no": 6},  # of 27
    "no": {"way": 27},  # of 42
    "way": {"no": 9},
    "name": {"rome": 9},
    "rome": {"\n": 9},
    "\n": {"rome": 9},
    "mute": {"</s>": 9},
    "USA": {"D": 9},
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """A Llama whose blocks add nothing: the logits are those that FOLLOWERS has after the last token."""
    size = len(VOCABULARY)
    config = LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, rms_norm_eps=1e-12, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in made.model.layers.parameters():
        parameter.zero_()
    made.model.embed_tokens.weight.copy_(torch.eye(size))
    counts = torch.ones(size, size)
    for word, following in FOLLOWERS.items():
        for other, count in following.items():
            counts[VOCABULARY.index(other), VOCABULARY.index(word)] = count
    made.lm_head.weight.copy_(counts.log() / math.sqrt(size))  # the norm makes a one-hot sqrt(size) long
    return made


def ask(item: str, question: str, options: tuple[str, ...], gold: int) -> Prompt:
    return Prompt(item, f"group of {item}", question, options=options, gold=gold)


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *asked: Level, **options: object) -> Evaluation:
    encoded = encode_levels(asked, TextEncoder(tokenizer), 64, 4, "skip")
    return evaluation.measure(model, tokenizer, encoded, Reading(max_new_tokens=4, **options))


LETTERS = Level("letters", 1.0, "set", "letter", [
    ask("first", "ask", (" A", " B"), 0),
    ask("second", "ask", (" B", " C", " A", " D"), 1),
    ask("third", "say", (" C", " D"), 0),  # a tie
    ask("fourth", "say", (" C", " D"), 1),
], human=0.9)  # fmt: skip
CLOZE = Level("cloze", 2.0, "set", "cloze", [ask("first", "say", (" rome", " no way"), 1)])


def test_letters_by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast):
    found = measure(model, tokenizer, LETTERS)
    (level,) = found.levels
    np.testing.assert_allclose(
        np.exp(found.items["level0_option_log_likelihood"]),
        [5 / 22, 3 / 22, 3 / 22, 1 / 22, 5 / 22, 1 / 22, *[1 / 27] * 4], rtol=1e-5,
    )  # fmt: skip
    assert found.items["level0_predicted"].tolist() == [0, 2, 0, 0]
    assert found.items["level0_gold"].tolist() == [0, 1, 0, 1]
    assert found.items["level0_option_count"].tolist() == [2, 4, 2, 2]
    assert level["chance"] == (1 / 2 + 1 / 4 + 1 / 2 + 1 / 2) / 4
    assert (level["score"], level["metric"], level["num_examples"]) == (0.5, "accuracy", 4)
    assert level["stderr"] == pytest.approx(math.sqrt(4 * 0.25 / 3 / 4))
    assert level["metrics"] == {"accuracy": 0.5}
    assert found.facts["engine"]["answers"] is None  # none is generated
    assert (level["level"], level["difficulty"], level["dataset"], level["reader"], level["human"]) == (
        "letters", 1.0, "set", "letter", 0.9
    )  # fmt: skip


def test_chance_where_all_items_have_the_same_options(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast):
    """Four of five are " rome", whatever letter it has: letters that mean other texts are other options."""
    texts = (" rome", " no way")
    cloze = [ask(str(number), "say", texts, int(number == 0)) for number in range(5)]
    letters = [prompt._replace(options=(" C", " D"), choices=texts[::-1], gold=1 - prompt.gold) for prompt in cloze]
    differ = [prompt._replace(choices=(" rome", prompt.item)) for prompt in letters]
    levels = [Level(name, None, "set", reader, prompts, human=0.9) for name, reader, prompts in (
        ("cloze", "cloze", cloze), ("letters", "letter", letters), ("differ", "letter", differ))]  # fmt: skip
    assert [level["chance"] for level in measure(model, tokenizer, *levels).levels] == [0.8, 0.8, 0.5]


def test_option_texts_by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast):
    """Whole, 7/27 against 6/27 · 27/42; per character ln(27/7)/4 against ln(7)/6, with the blank the other."""
    found = measure(model, tokenizer, CLOZE)
    np.testing.assert_allclose(np.exp(found.items["level0_option_log_likelihood"]), [7 / 27, 1 / 7], rtol=1e-5)
    assert (found.levels[0]["metric"], found.levels[0]["score"], found.levels[0]["chance"]) == ("accuracy", 0.0, 0.5)
    assert found.levels[0]["metrics"] == {"accuracy": 0.0, "accuracy_norm": 1.0}
    assert found.items["level0_predicted"].tolist() == [0] and found.items["level0_predicted_norm"].tolist() == [1]
    assert found.items["score"].tolist() == [0.0] and found.levels[0]["stderr"] is None
    normalized = measure(model, tokenizer, CLOZE, length_normalized=True)
    assert (normalized.levels[0]["metric"], normalized.levels[0]["score"]) == ("accuracy_norm", 1.0)
    assert normalized.items["score"].tolist() == [1.0]


def test_length_normalisation_is_for_option_texts_alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast):
    found = measure(model, tokenizer, LETTERS, CLOZE, length_normalized=True)
    assert [level["metric"] for level in found.levels] == ["accuracy", "accuracy_norm"]


def test_a_generated_letter_is_the_last_character_of_one_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
):
    """After "ask" A, after "USA" D, after "rome" a line's end, after "mute" the end; nothing is right by guessing."""
    letters = (" A", " B", " C", " D")
    prompts = [ask("a", "ask", letters, 0), ask("b", "USA", letters, 3), ask("c", "USA", letters[:3], 0),
               ask("d", "rome", letters, 0), ask("e", "mute", letters, 0), ask("f", "way", letters, 0)]  # fmt: skip
    found = measure(model, tokenizer, Level("L", 1.0, "set", "generate", prompts))
    assert found.items["level0_predicted"].tolist() == [0, 3, -1, -1, -1, -1]
    assert found.levels[0]["score"] == 2 / 6 and found.levels[0]["chance"] == 0.0
    level = Level("L", 1.0, "set", "generate", [ask("u", "say", letters, 0)])
    (first,) = tokenizer.convert_tokens_to_ids(["USA"])
    outcome = evaluation.chosen(level, np.zeros(4), np.full(4, first), tokenizer)
    assert outcome.metrics["accuracy"].tolist() == [1.0]  # "USA" ends in A, as the paper's code has it


def test_a_generated_letter_is_chosen_under_the_models_own_penalties(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    """A has been said: its logit is ln(5) / 3 then, that of B ln(3)."""
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 3.0)
    found = measure(model, tokenizer, Level("L", 1.0, "set", "generate", [ask("a", "A ask", (" A", " B"), 1)]))
    assert found.items["level0_predicted"].tolist() == [1]
    assert found.facts["tokens_distinct"] == 2 * len(["A", "ask"])  # for the log-likelihoods, and for the letter


def answer(item: str, question: str) -> Prompt:
    return Prompt(item, item, question, answers=("Rome",))


def test_generated_answers_by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast):
    """rome, line's end; line's end, rome, line's end; the end; way no way no; D, which ends too."""
    prompts = [answer(str(place), text) for place, text in enumerate(["name", "name rome", "mute", "no", "USA"])]
    level = Level("L", 1.0, "set", "answer", prompts)
    ends = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [2, VOCABULARY.index("D")]
    try:
        found = measure(model, tokenizer, level)
    finally:
        model.generation_config.eos_token_id = ends
    assert found.items["level0_predicted"].tolist() == ["rome", "rome", "", "way no way no", ""]
    assert found.levels[0]["metrics"] == {
        "exact_match": 0.4, "contains": 0.4, "f1": 0.4, "em_original": 0.8, "empty": 0.4
    }  # fmt: skip
    assert (found.levels[0]["score"], found.levels[0]["chance"], found.levels[0]["metric"]) == (0.4, 0.0, "exact_match")
    assert found.items["score"].tolist() == found.items["level0_exact_match"].tolist() == [1, 1, 0, 0, 0]
    # Of each, the prompt and all of the answer but its last token; "name" is fed once.
    assert found.facts["tokens_distinct"] == (1 + 1) + (1 + 2) + (1 + 0) + (1 + 3) + (1 + 0)


def test_an_answer_does_not_end_before_it_has_as_many_tokens_as_asked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
):
    """After "mute" the end is the most likely; all other tokens are alike, and the fourth is the last."""
    level = Level("L", 1.0, "set", "answer", [answer("0", "mute")])
    fed = [measure(model, tokenizer, level, min_new_tokens=fewest).facts["tokens_distinct"] for fewest in (0, 1)]
    assert fed == [1, 1 + 3]


def test_freebaseqa_has_the_originals_own_match_too():
    """Rome: written whole, inside a longer word, only in the question; not at all."""
    asked = [answer("0", "capital of Italy"), answer("1", "lovers"), answer("2", "is Rome old"), answer("3", "which")]
    texts = ["Rome", "romeo", "yes", "Paris"]
    found = evaluation.answered(Level("L", 2.0, "freebaseqa", "answer", asked), texts).metrics
    assert found["freebaseqa_original"].tolist() == [1, 1, 1, 0]
    assert found["exact_match"].tolist() == [1, 0, 0, 0]
    assert "freebaseqa_original" not in evaluation.answered(Level("L", 2.0, "triviaqa", "answer", asked), texts).metrics


def test_an_answer_of_nothing_but_articles_and_punctuation_is_empty():
    asked = [answer(str(place), "?") for place in range(4)]
    found = evaluation.answered(Level("L", 2.0, "triviaqa", "answer", asked), ["The.", "", "!", "Paris"]).metrics
    assert found["empty"].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("metric", "score"), [("exact_match", 0.25), ("contains", 0.5), ("f1", 0.375), ("em_original", 1.0)]
)
def test_answers_are_judged_by_the_metric_asked_for(metric: str, score: float):
    texts = ["The Rome!", "in Rome now", "", "romeo"]
    level = Level("L", 1.0, "set", "answer", [answer(str(place), "?") for place in range(4)])
    outcome = evaluation.answered(level, texts)
    assert outcome.metrics[metric].mean() == score
    encoded = EncodedLevel(level, [], [], 1, 2)
    described = evaluation.describe_level(encoded, outcome, metric)
    assert described["score"] == score and described["metrics"]["empty"] == 0.25
    assert described["facts"] == {"shortened": 1, "skipped_too_long": 2}
    assert described["stderr"] == pytest.approx(np.std(outcome.metrics[metric], ddof=1) / 2)
    table = evaluation.item_table([encoded], [outcome], [metric])
    assert table["score"].tolist() == outcome.metrics[metric].tolist()


def test_levels_are_measured_together_as_alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast):
    answers = Level("answers", 3.0, "set", "answer", [answer("1", "name"), answer("2", "no")])
    asked = [answers, CLOZE, LETTERS, answers._replace(name="again", prompts=answers.prompts[1:])]
    together = measure(model, tokenizer, *asked)
    apart = [measure(model, tokenizer, level) for level in asked]
    assert together.levels == [found.levels[0] for found in apart]
    assert together.items["level"].tolist() == [0, 0, 1, 2, 2, 2, 2, 3]
    assert together.items["item"].tolist() == ["1", "2", "first", "first", "second", "third", "fourth", "2"]
    assert together.items["group"].tolist()[2] == "group of first"
    for index, found in enumerate(apart):
        for name in ("score", "item"):
            assert together.items[name][together.items["level"] == index].tolist() == found.items[name].tolist()
        predicted = f"level{index}_predicted"
        assert together.items[predicted].tolist() == found.items["level0_predicted"].tolist()
    unshared = measure(model, tokenizer, *asked, plain=True)
    assert unshared.levels == together.levels
    assert unshared.facts["tokens_distinct"] == together.facts["tokens_distinct"]


def test_each_level_that_judges_itself_gets_its_own_part_of_the_scores(monkeypatch: pytest.MonkeyPatch):
    scores = Scores(np.array([-1.0, -2.0, -3.0]), np.array([4, 5, 6]), Work(3, 3), np.array([False, True, True]))
    monkeypatch.setattr(evaluation, "score", lambda *given: scores)
    levels = [
        SimpleNamespace(
            level=SimpleNamespace(reader="lm_eval"), continuations=continuations, contexts=[], stops=[], judge=print
        )
        for continuations in ([["one"], ["two"]], [["three"]])
    ]
    responses, _ = evaluation.respond(None, None, levels, None, ALONE, (PLAIN, PLAIN), None)
    assert [(own.greedy.tolist(), own.log_likelihood.tolist(), own.first_token.tolist()) for own, _ in responses] == [
        ([False, True], [-1.0, -2.0], [4, 5]), ([True], [-3.0], [6])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "groups", "expected"),
    [
        (["Rome"], "a", None),
        (["Rome", "no"], "aa", None),  # one group says nothing of the spread
        (["Rome", "no"], "ab", 0.5),
        # Scores 1 1 0 0: alike within groups they are as two, sqrt(2 / 1 * (1 + 1)) / 4; else sqrt(1 / 3 / 4).
        (["Rome", "Rome", "no", "no"], "aabb", 0.5),
        (["Rome", "Rome", "no", "no"], "abcd", math.sqrt(1 / 12)),
        (["Rome", "no", "Rome", "no"], "aabb", 0.0),
        (["Rome"] * 5, "abcde", 0.0),
    ],
)
def test_standard_errors_are_over_groups(texts: list[str], groups: str, expected: float | None):
    prompts = [answer(str(place), "?")._replace(group=group) for place, group in enumerate(groups)]
    level = Level("L", 1.0, "set", "answer", prompts)
    outcome = evaluation.answered(level, texts)
    found = evaluation.describe_level(EncodedLevel(level, [], [], 0, 0), outcome, "exact_match")["stderr"]
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize(
    ("score", "stderr", "warned"),
    [(0.5, 0.1, True), (0.25, 0.0, True), (0.44, 0.1, True), (0.46, 0.1, False), (0.9, None, True), (1.0, 0.0, False),
     (0.33, 0.0, True), (0.34, 0.0, False)],
)  # fmt: skip
def test_a_dense_model_that_is_not_above_chance_is_said_loudly(
    score: float, stderr: float | None, warned: bool, caplog: pytest.LogCaptureFixture
):
    """25 % by chance: 0.46 is more than 1.96 standard errors of 0.1 above it, 0.44 and, at 50 %, 0.5 are not.

    A guesser at 100 items has an error of sqrt(.25 * .75 / 100), of which 1.96 are .085.
    """
    chance = 0.5 if score == 0.5 else 0.25
    level = {"level": "PIQA", "score": score, "stderr": stderr, "chance": chance, "num_examples": 100}
    with caplog.at_level(logging.WARNING):
        evaluation.warn_of_chance(5, [level])
    assert ("SETTING 5, PIQA: THE DENSE MODEL IS NOT ABOVE CHANCE" in caplog.text) == warned
    assert len(caplog.records) == warned
    if stderr is None:
        assert "standard error unknown" in caplog.text


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"difficulty": None, "human": None}, True),
        ({"difficulty": None, "human": 0.9}, False),
        ({"difficulty": 0.5, "human": None}, False),
        ({"difficulty": None, "human": None, "facts": {"reference_only": 1}}, False),
    ],
)
def test_a_level_whose_difficulty_will_not_be_known_is_named_at_the_start(
    changes: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        evaluation.report_levels(5, [EncodedLevel(LETTERS._replace(**changes), [], [], 0, 0)])
    said = ["setting 5, no human score: letters is shown without difficulty"]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == said * warned


def test_what_was_left_out_is_logged(caplog: pytest.LogCaptureFixture):
    level = LETTERS._replace(facts={"options_refer_to_others": 7, "duplicate_options": 0})
    with caplog.at_level(logging.INFO):
        evaluation.report_levels(5, [EncodedLevel(level, [], [], 3, 2)])
    assert caplog.records[0].getMessage() == (
        "setting 5, letters (set, letter): 4 items, shortened: 3, skipped as too long: 2, options refer to others: 7"
    )
