import unicodedata

import pytest

from llm_tasks.engine.answers import (
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
    assert f1("duran duran", ["Duran Duran"]) == 1
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


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("答案是北京。", "答 案 是 北 京"),
        ("北京 Beijing", "北 京 beijing"),
        ("iPhone手机", "iphone 手 机"),
        ("２００８年", "2008 年"),
        ("《红楼梦》、“是的”…", "红 楼 梦 是 的"),
        ("ヴィンチ・ダ", "ヴ ィ ン チ ダ"),
        ("ｶﾞｯﾂ", "ガ ッ ツ"),  # half-width, with its voice mark
        ("か\u3099", "が"),  # decomposed
        ("กรุงเทพฯ ๒๕๖๗", "ก รุ ง เ ท พ ฯ ๒๕๖๗"),  # a vowel below stays with its consonant
        ("ខ្មែរ", "ខ្មែ រ"),  # stacked consonants are one
        ("པོད་ཡིག", "པོ ད ཡི ག"),
        ("維生素A", "維 生 素 a"),
        ("維生素 A", "維 生 素 a"),
        ("北\u200b京", "北 京"),
        ("葛\U000e0100", "葛"),
        ("。", "。"),
    ],
)
def test_characters_of_scripts_without_blanks_stand_apart(text: str, normalized: str):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Việt Nam", "Vie\u0302\u0323t Nam"),
        ("Rontgen \u00f6", "Rontgen o\u0308"),
        ("हिन्दी", "हिन्दी"),
        ("서울", "\u1109\u1165\u110b\u116e\u11af"),
        ("ﾊﾟﾘ", "パリ"),
        ("\uff30\uff41\uff52\uff49\uff53", "paris"),
        ("北京", "北 京"),
        ("レオナルド・ダ・ヴィンチ", "レオナルドダヴィンチ"),
    ],
)
def test_the_same_characters_written_otherwise_are_the_same(one: str, other: str):
    assert exact_match(one, [other]) and exact_match(other, [one]) and f1(one, [other]) == 1


def test_containment_and_f1_by_characters_by_hand():
    assert contains("答案是北京。", ["北京"]) and not exact_match("答案是北京。", ["北京"])
    assert f1("答案是北京。", ["北京"]) == pytest.approx(2 * 2 / (5 + 2))
    assert not contains("京北", ["北京"]) and f1("京北", ["北京"]) == 1  # as with words
    assert contains("iPhone手机很好", ["iPhone"]) and contains("在2008年举行", ["2008"])
    assert not contains("在20081年", ["2008"]) and not contains("iPhones手机", ["iPhone"])
    assert contains("首都はガです", ["ガ"]) and not contains("カ", ["ガ"])
    assert contains("คำตอบคือกรุงเทพ", ["กรุงเทพ"]) and not contains("กา", ["ก\u0e31"])
    assert not contains("維生素C", ["維生素A"]) and not contains("維生素", ["維生素A"])
    assert not contains("", ["北京"]) and f1("。", ["北京"]) == 0


@pytest.mark.parametrize(
    "text",
    ["½ cup … ﬁne ² ™ “yes” Ⅳ", "naïve \u2013 1914\u201418", "هُوَ كِتَاب", "שָׁלוֹם", "हिन्दी में", "서울은 크다"],
)
def test_other_scripts_keep_their_words_marks_and_signs(text: str):
    assert normalize_answer(text) == unicodedata.normalize("NFC", text.lower())
