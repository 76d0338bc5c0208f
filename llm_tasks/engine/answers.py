"""Whether a generated answer is right: equality, containment and F1 after TriviaQA's normalisation.

Texts in scripts that put no spaces between words, such as Chinese, Japanese and Thai, are compared by characters: each
counts as a word. Words of other scripts in such a text stay words.

An empty prediction is never right in `exact_match`, `contains` and `f1`. The originals' measures, in which it can be,
are here for comparison only.
"""

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = string.punctuation + "\u2018\u2019\u00b4"  # as the official script: no dashes, no double curly quotes
BLANKS = str.maketrans(dict.fromkeys(PUNCTUATION, " "))
# Small models go on after "The answer is" with a colon and a new line, and say "A:" once more after it.
LEAD = re.compile(r"(?:[\s:]|(?:A|Answer):)*")
ARTICLES = re.compile(r"\b(a|an|the)\b")
# Scripts without spaces between words, as blocks of Unicode; their punctuation and digits are told by category.
UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b"  # parts and marks of Han
    "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"  # Hiragana, Katakana
    "\u3100-\u312f\u31a0-\u31bf"  # Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "\ua000-\ua4cf"  # Yi
    "]"
)
WIDE = re.compile("[\uff01-\uffee]")  # full-width Latin letters and digits, half-width Katakana
STACKED = ("\u1039", "\u17d2")  # joins the next consonant to this one: Myanmar, Khmer


def first_line(text: str) -> str:
    """What is judged of a generated continuation: its first line, without LEAD before it and spaces after it."""
    return _without_lead(text).split("\n", 1)[0].rstrip()


def has_first_line(text: str) -> bool:
    """Whether nothing that follows can change the first line."""
    return "\n" in _without_lead(text)


def _without_lead(text: str) -> str:
    return text[LEAD.match(text).end() :]


def normalize_answer(text: str) -> str:
    """Lower case, punctuation and underscores as spaces, no articles, single spaces; characters composed (NFC).

    In a text with characters of UNSPACED scripts these stand apart, as words do; all of Unicode's punctuation is space,
    one-letter words are no articles ("vitamin A"), and compatible forms of a character are one (NFKC).

    Source: TriviaQA's official evaluation script. SQuAD's, which deletes punctuation, is another.
    """
    unspaced = UNSPACED.search(text)
    text = unicodedata.normalize("NFKC" if unspaced or WIDE.search(text) else "NFC", text).lower().translate(BLANKS)
    return " ".join((_characters_apart(text) if unspaced else ARTICLES.sub(" ", text)).split())


def _characters_apart(text: str) -> str:
    """`text` with spaces around each character of an UNSPACED script, which keeps its marks, and for punctuation."""
    found = ""
    apart = False  # whether the last character stands apart, so that a space follows its marks
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cf" or "VARIATION SELECTOR" in unicodedata.name(character, ""):
            continue  # it says where a line may break, or how a character is drawn
        if kind.startswith("P"):
            found, apart = found + " ", False
        elif kind.startswith("M") or found.endswith(STACKED):
            found += character
        else:
            alone = kind != "Nd" and bool(UNSPACED.match(character))
            found += (" " if alone or apart else "") + character
            apart = alone
    return found


# A sweep compares the same thousands of aliases with every model's answers.
_normalized = functools.lru_cache(maxsize=2**18)(normalize_answer)


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals one of the answers once both are normalised; an empty one does not."""
    return any(predicted == answer for predicted, answer in _comparable(prediction, answers))


def contains(prediction: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers is in the prediction as whole words, both normalised."""
    return any(f" {answer} " in f" {predicted} " for predicted, answer in _comparable(prediction, answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of the precision and recall of the prediction's words, the best over the answers, in [0, 1]."""
    return max((_token_f1(*pair) for pair in _comparable(prediction, answers)), default=0.0)


def em_original(prediction: str, answers: Sequence[str]) -> bool:
    """The original's "exact match": one of the two is anywhere in the other, letter by letter, both normalised.

    It is right for an empty prediction and for "a" whatever is asked; show the share of empty answers beside it.

    Source: the original's open_closed_book/trivia_vicuna.py.
    """
    predicted = _normalized(prediction)
    return any(predicted in answer or answer in predicted for answer in map(_normalized, answers))


def freebaseqa_original(output: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers is anywhere in the output, both in lower case and without spaces.

    Args:
        output: the original searches all the text that the model returns, and so the question too.
    Source: the original authors' llm-kick, factoid_qa/main_freebase.py. It accepts the first answer's name alone and
        searches as much text as three times the prompt; here are all names, and the first line of what is written.
    """
    output = output.replace(" ", "").lower()
    return any(answer.strip().replace(" ", "").lower() in output for answer in answers)


def _comparable(prediction: str, answers: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of the prediction and an answer, both normalised; empty answers have no pair.

    An answer of which normalising leaves nothing, such as "A+" or "*", is put in lower case instead, and so is the
    prediction beside it.
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
