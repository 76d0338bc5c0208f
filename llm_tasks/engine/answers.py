"""Whether a generated answer is right: equality, containment and F1 after TriviaQA's normalisation.

In scripts without spaces between words, such as Chinese, Japanese and Thai, each character counts as a word. Words of
other scripts in the same text stay words.

An empty prediction is never right by `exact_match`, `contains` and `f1`. It can be by the measures of the original's
code, which are here for comparison only.
"""

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = string.punctuation + "\u2018\u2019\u00b4"  # as the official script: no dashes, no double curly quotes
SPACES = str.maketrans(dict.fromkeys(PUNCTUATION, " "))
# Skipped before an answer: small models continue "The answer is" with a colon, a line break and another "A:".
LEAD = re.compile(r"(?:[\s:]|(?:A|Answer):)*")
ARTICLES = re.compile(r"\b(a|an|the)\b")
# Unicode blocks of scripts without spaces between words; punctuation and digits in them are recognised by category.
UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b"  # Han radicals and marks
    "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"  # Hiragana, Katakana
    "\u3100-\u312f\u31a0-\u31bf"  # Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "\ua000-\ua4cf"  # Yi
    "]"
)
WIDE = re.compile("[\uff01-\uffee]")  # full-width Latin letters and digits, half-width Katakana
STACKED = ("\u1039", "\u17d2")  # joins the next consonant to this one: Myanmar, Khmer


def first_line(text: str) -> str:
    """The first line of a generated text after LEAD, without spaces at its end: the answer that is scored."""
    return _without_lead(text).split("\n", 1)[0].rstrip()


def has_first_line(text: str) -> bool:
    """Whether the first line is complete."""
    return "\n" in _without_lead(text)


def _without_lead(text: str) -> str:
    return text[LEAD.match(text).end() :]


def normalize_answer(text: str) -> str:
    """Lower case, punctuation and underscores as spaces, no articles, single spaces; characters composed (NFC).

    In a text with characters of UNSPACED scripts, these are separated by spaces, all Unicode punctuation becomes
    spaces, articles stay ("vitamin A"), and compatible forms of a character become one (NFKC).

    Source: TriviaQA's official evaluation script; SQuAD's deletes punctuation instead.
    """
    unspaced = UNSPACED.search(text)
    text = unicodedata.normalize("NFKC" if unspaced or WIDE.search(text) else "NFC", text).lower().translate(SPACES)
    return " ".join((_separate_characters(text) if unspaced else ARTICLES.sub(" ", text)).split())


def _separate_characters(text: str) -> str:
    """Put spaces around each character of an UNSPACED script with its combining marks, and in place of punctuation."""
    result = ""
    after_unspaced = False  # whether the last base character is of an UNSPACED script
    for character in text:
        category = unicodedata.category(character)
        if category == "Cf" or "VARIATION SELECTOR" in unicodedata.name(character, ""):
            continue  # it says where a line may break, or how a character is drawn
        if category.startswith("P"):
            result, after_unspaced = result + " ", False
        elif category.startswith("M") or result.endswith(STACKED):
            result += character
        else:
            is_unspaced = category != "Nd" and bool(UNSPACED.match(character))
            result += (" " if is_unspaced or after_unspaced else "") + character
            after_unspaced = is_unspaced
    return result


# Cached: a sweep compares the same thousands of aliases with the answers of every model.
_normalized = functools.lru_cache(maxsize=2**18)(normalize_answer)


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals one of the answers, both normalised; False for an empty prediction."""
    return any(predicted == answer for predicted, answer in _comparable(prediction, answers))


def contains(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction contains one of the answers as whole words, both normalised."""
    return any(f" {answer} " in f" {predicted} " for predicted, answer in _comparable(prediction, answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of the precision and recall of the prediction's words, the best over the answers, in [0, 1]."""
    return max((_token_f1(*pair) for pair in _comparable(prediction, answers)), default=0.0)


def em_original(prediction: str, answers: Sequence[str]) -> bool:
    """The original's "exact match": prediction or answer is a substring of the other, both normalised.

    True for an empty prediction and for "a", whatever the question; report the share of empty answers beside it.

    Source: the original's open_closed_book/trivia_vicuna.py.
    """
    predicted = _normalized(prediction)
    return any(predicted in answer or answer in predicted for answer in map(_normalized, answers))


def freebaseqa_original(output: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers is a substring of the output, both in lower case and without spaces.

    Args:
        output: the question and the first line of the generated answer.
    Source: the original authors' llm-kick, factoid_qa/main_freebase.py, with two differences: it accepts only the name
        of the first answer, here each is accepted; and it searches all generated text, up to three times the prompt's
        length, here only the first line is searched.
    """
    output = output.replace(" ", "").lower()
    return any(answer.strip().replace(" ", "").lower() in output for answer in answers)


def _comparable(prediction: str, answers: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of the prediction and an answer, both normalised; none for empty answers.

    Where normalisation leaves nothing of an answer, such as "A+" or "*", it and the prediction are only lower-cased.
    """
    pairs = []
    for answer in answers:
        if normalized := _normalized(answer):
            pairs.append((_normalized(prediction), normalized))
        elif plain := " ".join(answer.lower().split()):
            pairs.append((" ".join(prediction.lower().split()), plain))
    return pairs


def _token_f1(predicted: str, answer: str) -> float:
    predicted_words, answer_words = predicted.split(), answer.split()
    common = (Counter(predicted_words) & Counter(answer_words)).total()
    return 2 * common / (len(predicted_words) + len(answer_words))
