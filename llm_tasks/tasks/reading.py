"""Questions with a text that holds the answer, and windows of that text that grow around the answer.

A window is made of whole sentences next to each other, always with the sentence of the answer. Windows of one item are
nested: a smaller share is the beginning of the order in which the full window grew.
"""

import random
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from harness.data import Source, checked_text, read_source, valid_text
from llm_tasks.engine.answers import PUNCTUATION, normalize_answer
from llm_tasks.levels import item_id

# A sentence may end here: after . ! ? with what closes a quotation, or at a line's end.
BREAK = re.compile(r"""[.!?]["'\u201d\u2019)\]]*\s+|\n\s*""")
OPENING = "\"'\u201c\u2018(["
# A full stop after one of these, or after an initial, ends no sentence.
ABBREVIATION = re.compile(
    r"(?<!\w)(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Mt|Ft|Lt|Col|Gen|Gov|Sen|Rep|Sgt|Capt|Cpl|Maj|Adm|Rev|Hon|Jr|Sr|vs|No|Vol|ca|cf)$"
)
ABBREVIATION_LENGTH = 6  # how far back to look for one
WORD = re.compile(rf"[^\s{re.escape(PUNCTUATION)}]+")  # as normalisation tells words apart
ARTICLES = ("a", "an", "the")
# More than tokens have on average: what is farther from the answer than this times the window is not even counted.
CHARACTERS_PER_TOKEN = 16

Span = tuple[int, int]  # the characters from the first number up to the second


class Item(NamedTuple):
    """A question, a text that holds its answer, and where.

    Fields:
        item: identity (item_id of the question and the document).
        group: identity of the document: several questions may share it.
        question: as the data set asks it.
        document: the whole text.
        answers: texts of which each is right.
        answer_span: the answer's characters in the document.
    """

    item: str
    group: str
    question: str
    document: str
    answers: tuple[str, ...]
    answer_span: Span


class ContextItems(NamedTuple):
    """Items of a data set and how many rows it has beside them.

    Fields:
        items: each question and document once.
        without_answer: rows none of whose texts holds an answer.
        repeated: rows whose question and document an earlier row has; their answers count for that one.
    """

    items: list[Item]
    without_answer: int
    repeated: int


class Window(NamedTuple):
    """A part of a document.

    Fields:
        text: whole sentences as they stand in the document.
        num_tokens: sum of its sentences' tokens.
        answer_position: of the middle of the answer, in characters, from 0 (start) to 1 (end).
    """

    text: str
    num_tokens: int
    answer_position: float


class _Row(NamedTuple):
    """What a data set's row says: texts by rank, answers, and where the answer is in the first text, if known."""

    documents: list[str]
    answers: tuple[str, ...]
    span: Span | None = None


class ContextSet(NamedTuple):
    """A data set of questions with texts.

    Fields:
        source: where it is.
        read: its row, and where that stands, to a _Row.
        is_large: on the hub too large to be read whole for some of its items.
    """

    source: Source
    read: Callable[[dict[str, Any], str], _Row]
    is_large: bool = False


def load(name: str, data_dir: Path | None, max_items: int | None = None) -> ContextItems:
    """The items of a data set of CONTEXT_SETS, each with the first of its texts that holds an answer.

    Args:
        data_dir: local layout; the hub when None.
        max_items: of a large data set on the hub, only so many rows are read.
    Raises:
        ValueError: the data set cannot be read, a row is damaged, or no text holds its answer.
    """
    context_set = CONTEXT_SETS[name]
    first = max_items if context_set.is_large and data_dir is None else None
    items: dict[str, Item] = {}
    without_answer = repeated = 0
    for where, fields in read_source(context_set.source, data_dir, first):
        question = checked_text(fields["question"], where, "question").strip()
        item = _item(question, context_set.read(fields, where))
        if item is None:
            without_answer += 1
        elif item.item in items:
            repeated += 1
            earlier = items[item.item]
            items[item.item] = earlier._replace(answers=_distinct([*earlier.answers, *item.answers]))
        else:
            items[item.item] = item
    if not items:
        raise ValueError(f"{name}: none of the {without_answer} contexts contains an answer to its question")
    return ContextItems(list(items.values()), without_answer, repeated)


def _item(question: str, row: _Row) -> Item | None:
    """The question with the first document that holds an answer; None if none does."""
    for document in row.documents:
        span = row.span or find_answer(document, row.answers)
        if span:
            return Item(item_id(question, document), item_id(document), question, document, row.answers, span)
    return None


def split_sentences(text: str) -> list[Span]:
    """The sentences of a text, each with the space behind it; together they are all of it but space at its start.

    A sentence ends at a line's end, and after . ! ? before a capital or an opening quotation mark or bracket, unless
    an abbreviation or an initial stands before the full stop.
    """
    starts = [len(text) - len(text.lstrip())]
    for match in BREAK.finditer(text, starts[0]):
        if match.end() < len(text) and ("\n" in match[0] or _ends_sentence(text, match.start(), match.end())):
            starts.append(match.end())
    return list(zip(starts, [*starts[1:], len(text)], strict=True)) if starts[0] < len(text) else []


def _ends_sentence(text: str, stop: int, following: int) -> bool:
    if not (text[following].isupper() or text[following] in OPENING):
        return False
    if text[stop] != "." or not text[stop + 1].isspace():
        return True
    return not ABBREVIATION.search(text, max(0, stop - ABBREVIATION_LENGTH), stop)


def find_answer(document: str, answers: Sequence[str]) -> Span | None:
    """Where the longest answer that a sentence holds stands first, whole words after normalisation; None if nowhere.

    An answer that no sentence holds, such as "Guess Who? Live", counts where it stands letter by letter; one that is
    nothing once normalised, such as "A", in its own case too.
    """
    longest_first = sorted(answers, key=len, reverse=True)
    sentences = split_sentences(document)
    normalized = [f" {normalize_answer(document[start:end])} " for start, end in sentences]
    joined = "\n".join(normalized)  # the line's end is in no answer
    starts = [0, *accumulate(len(sentence) + 1 for sentence in normalized)]
    for answer in filter(None, map(normalize_answer, longest_first)):
        at = joined.find(f" {answer} ")
        if at >= 0:
            return _within(document, sentences[bisect_right(starts, at) - 1], answer)
    lower = document.lower()
    for answer in map(str.strip, longest_first):
        if answer.lower() in lower:  # compiling a pattern for every alias takes longer than all the rest
            case = re.IGNORECASE if normalize_answer(answer) else re.NOFLAG
            match = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", document, case)
            if match:
                return match.span()
    return None


def _within(document: str, sentence: Span, normalized_answer: str) -> Span:
    """Where in a sentence, which holds it, a normalised answer stands."""
    wanted = normalized_answer.split()
    words = [match for match in WORD.finditer(document, *sentence) if match[0].lower() not in ARTICLES]
    texts = [match[0].lower() for match in words]
    for first in range(len(words) - len(wanted) + 1):
        last = first + len(wanted) - 1
        if texts[first : last + 1] == wanted:
            return words[first].start(), words[last].end()
    return sentence  # an article behind a dash, which normalisation takes out of a word


def windows(
    item: Item, shares: Sequence[int], budget: int, seed: int, count_tokens: Callable[[list[str]], list[int]]
) -> list[Window]:
    """The item's window at each share of its full window's tokens.

    The full window is what fits into the budget: the answer's sentence, then one sentence after another from before or
    behind. How much comes from before is drawn for each item, so that answers stand anywhere in their windows. A
    share's window is the shortest beginning of that growth with at least so many of the full window's tokens.

    Args:
        shares: percent, 1 to 100.
        budget: tokens of the full window; a longer sentence with the answer is the whole window.
        seed: of the draw, together with the item's identity.
        count_tokens: number of tokens of each text.
    """
    sentences, anchor = _sentences_around(item, budget)
    counts = count_tokens([item.document[start:end].rstrip(" ") for start, end in sentences])
    order = growth_order(counts, anchor, budget, random.Random(f"{seed} {item.item}"))
    grown = list(accumulate(counts[sentence] for sentence in order))
    found = []
    for share in shares:
        size = next(size for size, tokens in enumerate(grown, start=1) if 100 * tokens >= share * grown[-1])
        start, end = sentences[min(order[:size])][0], sentences[max(order[:size])][1]
        text = item.document[start:end].rstrip()
        position = (sum(item.answer_span) / 2 - start) / len(text)
        found.append(Window(text, grown[size - 1], position))
    return found


def _sentences_around(item: Item, budget: int) -> tuple[list[Span], int]:
    """The document's sentences that could be in the window, those that hold the answer made one, and its index."""
    sentences = split_sentences(item.document)
    starts = [start for start, _ in sentences]
    first, last = (bisect_right(starts, at) - 1 for at in (item.answer_span[0], item.answer_span[1] - 1))
    reach = CHARACTERS_PER_TOKEN * budget
    anchor = sentences[first][0], sentences[last][1]
    before = [span for span in sentences[:first] if anchor[0] - span[0] <= reach]
    behind = [span for span in sentences[last + 1 :] if span[1] - anchor[1] <= reach]
    return [*before, anchor, *behind], len(before)


def growth_order(counts: Sequence[int], anchor: int, budget: int, generator: random.Random) -> list[int]:
    """Sentences in the order in which a window takes them; every beginning of it is a run without gaps.

    Args:
        counts: tokens of each sentence.
        anchor: the first sentence, taken whatever its length.
        budget: tokens; a side whose next sentence does not fit gives no more.
        generator: draws the share that comes from before the anchor, and then each side by that chance.
    """
    order, total = [anchor], counts[anchor]
    before, behind = anchor - 1, anchor + 1
    share_before = generator.random()
    while before >= 0 or behind < len(counts):
        goes_before = behind >= len(counts) or (before >= 0 and generator.random() < share_before)
        sentence = before if goes_before else behind
        if total + counts[sentence] > budget:  # that side is closed
            before, behind = (-1, behind) if goes_before else (before, len(counts))
            continue
        order.append(sentence)
        total += counts[sentence]
        before, behind = (before - 1, behind) if goes_before else (before, behind + 1)
    return order


def alias_texts(answer: object, where: str) -> tuple[str, ...]:
    """All texts of TriviaQA's `answer`: its value, aliases and normalised aliases.

    Raises:
        ValueError: it is no such record, or holds no text.
    """
    if not isinstance(answer, dict):
        raise ValueError(f"{where}: 'answer' is no record with a value and aliases but {type(answer).__name__}")
    lists = (answer.get(name) or [] for name in ("aliases", "normalized_aliases"))
    return answer_texts([answer.get("value"), *chain.from_iterable(lists)], where, "answer")


def answer_texts(texts: object, where: str, field: str) -> tuple[str, ...]:
    """The different texts of a list that are more than white space.

    Raises:
        ValueError: no list, something in it is no text, or no text is left.
    """
    if not isinstance(texts, Sequence) or isinstance(texts, str):
        raise ValueError(f"{where}: {field!r} is no list of texts but {type(texts).__name__}")
    found = _distinct(text for text in texts if text is not None and valid_text(text, where, field).strip())
    if not found:
        raise ValueError(f"{where}: {field!r} holds no text")
    return found


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _column(records: object, name: str, where: str, field: str) -> list[Any]:
    """One field of all records: of a dict of lists, as the hub gives them, or of a list of dicts, as JSON does."""
    if isinstance(records, dict):
        return list(records.get(name) or [])
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{where}: {field!r} is no list of records")
    return [record.get(name) for record in records]


def _texts(values: Sequence[object], where: str, field: str) -> list[str]:
    """Those that hold more than white space."""
    return [text for text in values if text is not None and valid_text(text, where, field).strip()]


def _trivia_qa(row: dict[str, Any], where: str) -> _Row:
    pages = _texts(_column(row["entity_pages"], "wiki_context", where, "entity_pages"), where, "wiki_context")
    found = _texts(_column(row["search_results"], "search_context", where, "search_results"), where, "search_context")
    by_rank = chain.from_iterable(zip_longest(pages, found))  # the original takes the first of each
    return _Row([text for text in by_rank if text is not None], alias_texts(row["answer"], where))


def _retrieved(row: dict[str, Any], where: str) -> _Row:
    """Passages of some hundred words each are one document, in the order of their rank."""
    if not isinstance(row["contexts"], list):
        raise ValueError(f"{where}: 'contexts' is no list")
    passages = [passage.get("text") if isinstance(passage, dict) else passage for passage in row["contexts"]]
    text = "\n\n".join(passage.strip() for passage in _texts(passages, where, "contexts"))
    return _Row([text], alias_texts(row["answer"], where))


def _squad(row: dict[str, Any], where: str) -> _Row:
    """The answer is where it is annotated; without annotations, as in the default assets, where the text has it."""
    context = checked_text(row["context"], where, "context")
    texts = _column(row["answers"], "text", where, "answers")
    starts = _column(row["answers"], "answer_start", where, "answers")
    answers = answer_texts(texts, where, "answers")
    if all(start is None for start in starts):
        return _Row([context], answers)
    if len(texts) != len(starts):
        raise ValueError(f"{where}: 'answers' has {len(texts)} texts and {len(starts)} answer_start")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or not context.startswith(text, start):
            raise ValueError(f"{where}: 'answers': {text!r} does not stand at character {start!r} of 'context'")
    # Some annotations of "8" stand in "18": the first that is whole words, else wherever the text has an answer.
    spans = ((start, start + len(text)) for text, start in zip(texts, starts, strict=True))
    return _Row([context], answers, next((span for span in spans if _is_whole(context, span)), None))


def _is_whole(text: str, span: Span) -> bool:
    """Whether a part of a text is neither preceded nor followed by more of a word."""
    start, end = span
    return start < end and not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum())


def _gold_passage(row: dict[str, Any], where: str) -> _Row:
    return _Row([checked_text(row["context"], where, "context")], answer_texts(row["answers"], where, "answers"))


CONTEXT_SETS = {
    "triviaqa": ContextSet(
        Source(
            "trivia_qa/rc", "validation", "mandarjoshi/trivia_qa", "rc", "validation",
            ("question", "entity_pages", "search_results", "answer"),
        ),
        _trivia_qa,
        is_large=True,
    ),
    "squad": ContextSet(
        Source("squad", "validation", "rajpurkar/squad", None, "validation", ("question", "context", "answers")), _squad
    ),
    "nq_open_gold_context": ContextSet(
        Source("nq_open_gold_context", "validation", None, None, "validation", ("question", "context", "answers")),
        _gold_passage,
    ),
    "trivia_qa_retrieved": ContextSet(
        Source("trivia_qa_retrieved", "dev_sample", None, None, "dev_sample", ("question", "contexts", "answer")),
        _retrieved,
    ),
}  # fmt: skip
