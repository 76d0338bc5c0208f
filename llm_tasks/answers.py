"""Whether a generated answer is right: equality, containment and F1 after TriviaQA's normalisation.

An empty prediction is never right in `exact_match`, `contains` and `f1`. The originals' measures, in which it can be,
are here for comparison only.
"""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence

PUNCTUATION = string.punctuation + "\u2018\u2019\u00b4"  # as the official script: no dashes, no double curly quotes
BLANKS = str.maketrans(dict.fromkeys(PUNCTUATION, " "))
# Small models go on after "The answer is" with a colon and a new line, and say "A:" once more after it.
LEAD = re.compile(r"(?:[\s:]|(?:A|Answer):)*")
ARTICLES = re.compile(r"\b(a|an|the)\b")


def first_line(text: str) -> str:
    """What is judged of a generated continuation: its first line, without LEAD before it and blanks after it."""
    return _without_lead(text).split("\n", 1)[0].rstrip()


def has_first_line(text: str) -> bool:
    """Whether nothing that follows can change the first line."""
    return "\n" in _without_lead(text)


def _without_lead(text: str) -> str:
    return text[LEAD.match(text).end() :]


def normalize_answer(text: str) -> str:
    """Lower case, punctuation and underscores as blanks, no articles, single blanks.

    Source: TriviaQA's official evaluation script. SQuAD's, which deletes punctuation, is another.
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(BLANKS)).split())


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
    """Whether one of the answers is anywhere in the output, both in lower case and without blanks.

    Args:
        output: the original searches all the text that the model returns, and so the question too.
    Source: the original authors' llm-kick, factoid_qa/main_freebase.py.
    """
    output = output.replace(" ", "").lower()
    return any(answer.strip().replace(" ", "").lower() in output for answer in answers)


def _comparable(prediction: str, answers: Sequence[str]) -> list[tuple[str, str]]:
    """The prediction and each answer in the form in which they are compared; no answer is empty.

    The answers "A+" and "*" are nothing once normalised; they and the prediction are only put in lower case.
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
