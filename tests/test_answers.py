import pytest

from llm_tasks.answers import (
    contains,
    em_original,
    exact_match,
    f1,
    first_line,
    freebaseqa_original,
    has_first_line,
    normalize_answer,
)

SUNSET = ["Sunset Boulevard", "Sunset Blvd."]


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Beatles", "beatles"),
        ("a_cat, an  Apple & THE end!", "cat apple end"),
        ("rock'n'roll", "rock n roll"),  # SQuAD's script would give rocknroll
        ("U.S.A.", "u s"),  # the last letter is now an article: as the official script
        ("theatre anthem", "theatre anthem"),
        ("\u2018Ah!\u2019 \u00b4x` \t\n y", "ah x y"),
        ("1914\u20131918 “yes”", "1914\u20131918 “yes”"),  # no ASCII: stays
        ("Röntgen", "röntgen"),
        ("the", ""),
        ("", ""),
        (" ... ", ""),
    ],
)
def test_normalisation_is_that_of_trivia_qa(text: str, normalized: str):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize("prediction", ["", " ", "\n", ".", "The", "a", "an the", "?!"])
def test_an_empty_prediction_is_never_right(prediction: str):
    for answers in (SUNSET, ["A+"], ["*"], [""], ["!"], []):
        assert not exact_match(prediction, answers)
        assert not contains(prediction, answers)
        assert f1(prediction, answers) == 0


@pytest.mark.parametrize("prediction", ["", ".", "The", "a", "s", "set"])
def test_what_the_original_calls_an_exact_match_of_sunset_boulevard(prediction: str):
    assert em_original(prediction, ["sunset boulevard"])
    assert not exact_match(prediction, SUNSET) and not contains(prediction, SUNSET) and f1(prediction, SUNSET) == 0


def test_exact_match_and_containment_by_hand():
    assert exact_match("the sunset_boulevard!", SUNSET)
    assert exact_match("Sunset Blvd", SUNSET)
    assert not exact_match("It is Sunset Boulevard.", SUNSET)
    assert contains("It is Sunset Boulevard.", SUNSET)
    assert not contains("Sunset", SUNSET)
    assert not contains("comparison", ["Paris"]) and em_original("comparison", ["Paris"])
    assert contains("Paris", ["Rome", "Paris"])
    assert contains("new york city", ["York"]) and not contains("new yorker", ["York"])


def test_answers_that_are_nothing_but_punctuation_and_articles():
    assert exact_match("A+", ["A+"]) and exact_match(" a+ ", ["A+"]) and not exact_match("B+", ["A+"])
    assert contains("it is an A+ I think", ["A+"]) and not contains("an A I think", ["A+"])
    assert exact_match("the the", ["The The"]) and f1("*", ["*"]) == 1


def test_f1_by_hand():
    assert f1("Sunset Boulevard", SUNSET) == 1
    assert f1("sunset", SUNSET) == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert f1("sunset over the boulevard of dreams", SUNSET) == pytest.approx(2 * (2 / 5) / (2 / 5 + 1))
    assert f1("moonrise", SUNSET) == 0
    assert f1("york york", ["new york"]) == 0.5  # a word counts as often as it is in both
    assert f1("sunset", ["moonrise", "sunset"]) == 1
    assert f1("sunset", []) == 0


def test_the_original_freebase_match_is_blind_to_words():
    assert freebaseqa_original("The answer is the Net Her lands", ["netherlands"])
    assert freebaseqa_original("comparison", ["Paris "])
    assert not freebaseqa_original("", ["Paris"])


@pytest.mark.parametrize(
    ("generated", "line"),
    [
        (" Paris\nQ: next", "Paris"),
        ("\n\n Paris \nRome", "Paris"),
        ("Paris\r\nRome", "Paris"),
        ("  \n ", ""),
        ("", ""),
        (":\n\nParis\nRome", "Paris"),
        (": Mission: Impossible\n", "Mission: Impossible"),
        (": \n", ""),
        ("\nA:\nA: Paris\nB: Rome", "Paris"),
        (" Answer: A: an arm", "an arm"),
        (" A) hair", "A) hair"),
        ("\nA:\n", ""),
    ],
)
def test_first_line(generated: str, line: str):
    assert first_line(generated) == line


@pytest.mark.parametrize(
    ("so_far", "known"), [("Paris", False), ("Paris\n", True), ("\n\n", False), (":\n", False), ("\nA:\n", False),
                          (" A: Paris\n", True), (" A\n", True)]
)  # fmt: skip
def test_a_first_line_is_known_once_what_it_says_has_ended(so_far: str, known: bool):
    assert has_first_line(so_far) == known
