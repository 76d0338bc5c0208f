"""Questions on a text that holds the answer, and windows of the text around the answer.

A window is a run of whole sentences that includes the answer's sentence. Windows of one item are nested: sentences are
added to it in one order, and a smaller window is the beginning of this order.
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

# Possible ends of sentences: . ! ? with closing quotation marks and brackets, or a line break.
BREAK = re.compile(r"""[.!?]["'\u201d\u2019)\]]*\s+|\n\s*""")
OPENING = "\"'\u201c\u2018(["
# Abbreviations and initials: a full stop after these ends no sentence.
ABBREVIATION = re.compile(
    r"(?<!\w)(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Mt|Ft|Lt|Col|Gen|Gov|Sen|Rep|Sgt|Capt|Cpl|Maj|Adm|Rev|Hon|Jr|Sr|vs|No|Vol|ca|cf)$"
)
ABBREVIATION_LENGTH = 6  # characters before a full stop that are searched for one
WORD = re.compile(rf"[^\s{re.escape(PUNCTUATION)}]+")  # as normalize_answer separates words
ARTICLES = ("a", "an", "the")
# More than a token has on average: sentences farther from the answer than this times the window's tokens are skipped.
CHARACTERS_PER_TOKEN = 16

Span = tuple[int, int]  # indices of characters: start, and end (exclusive)


class Item(NamedTuple):
    """A question, a text that holds its answer, and the answer's span in it.

    Fields:
        item: identity (item_id of the question and the document).
        group: identity of the document, which several questions may share.
        question: as in the data set.
        document: the text.
        answers: all texts that are right.
        answer_span: where an answer is in the document.
    """

    item: str
    group: str
    question: str
    document: str
    answers: tuple[str, ...]
    answer_span: Span


class ContextItems(NamedTuple):
    """Items of a data set, and the number of rows that are left out.

    Fields:
        items: each pair of question and document once.
        without_answer: rows whose texts hold no answer.
        repeated: rows with the question and document of an earlier row, to whose answers theirs are added.
    """

    items: list[Item]
    without_answer: int
    repeated: int


class Window(NamedTuple):
    """A part of a document.

    Fields:
        text: whole sentences, as in the document.
        num_tokens: sum of its sentences' tokens.
        answer_position: position of the middle of the answer, in characters, from 0 (start) to 1 (end).
    """

    text: str
    num_tokens: int
    answer_position: float


class _Row(NamedTuple):
    """A data set's row: texts by rank, answers, and the answer's span in the first text if it is annotated."""

    documents: list[str]
    answers: tuple[str, ...]
    span: Span | None = None


class ContextSet(NamedTuple):
    """A data set of questions with texts.

    Fields:
        source: where to read it.
        read: from a row and its file and line (for messages) to a _Row.
        is_large: too large on the hub to read all rows if only some items are needed.
    """

    source: Source
    read: Callable[[dict[str, Any], str], _Row]
    is_large: bool = False


def load(name: str, data_dir: Path | None, max_items: int | None = None) -> ContextItems:
    """The items of a data set of CONTEXT_SETS, each with the first of its texts that holds an answer.

    Args:
        data_dir: folder of local data sets; the hub when None.
        max_items: number of rows to read of a large data set on the hub.
    Raises:
        ValueError: the data set cannot be read, a row is invalid, or no text of any row holds an answer.
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
    """Spans of a text's sentences, each with the white space after it.

    A sentence ends at a line break, and at . ! ? before a capital or an opening quotation mark or bracket, unless the
    full stop is that of an abbreviation or initial.
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
    """Span of the longest answer that occurs in a sentence as whole words, both normalised; None if there is none.

    If no sentence holds an answer, the document is searched for the answers' texts, such as "Guess Who? Live", in any
    case; for answers that normalisation leaves empty, such as "A", in the same case. Of several occurrences, the first.
    """
    longest_first = sorted(answers, key=len, reverse=True)
    sentences = split_sentences(document)
    normalized = [f" {normalize_answer(document[start:end])} " for start, end in sentences]
    joined = "\n".join(normalized)  # no answer contains a line break
    starts = [0, *accumulate(len(sentence) + 1 for sentence in normalized)]
    for answer in filter(None, map(normalize_answer, longest_first)):
        at = joined.find(f" {answer} ")
        if at >= 0:
            return _within(document, sentences[bisect_right(starts, at) - 1], answer)
    lower = document.lower()
    for answer in map(str.strip, longest_first):
        if answer.lower() in lower:  # compiling a pattern for every alias would take longer than all the rest
            case = re.IGNORECASE if normalize_answer(answer) else re.NOFLAG
            match = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", document, case)
            if match:
                return match.span()
    return None


def _within(document: str, sentence: Span, normalized_answer: str) -> Span:
    """Span in the document of a normalised answer that `sentence` holds."""
    answer = normalized_answer.split()
    words = [match for match in WORD.finditer(document, *sentence) if match[0].lower() not in ARTICLES]
    texts = [match[0].lower() for match in words]
    for first in range(len(words) - len(answer) + 1):
        last = first + len(answer) - 1
        if texts[first : last + 1] == answer:
            return words[first].start(), words[last].end()
    return sentence  # an article after a dash, which normalisation removes from within a word


def windows(
    item: Item, shares: Sequence[int], budget: int, seed: int, count_tokens: Callable[[list[str]], list[int]]
) -> list[Window]:
    """The item's window for each share of its full window's tokens.

    The full window begins with the answer's sentence and gets sentences from before and after it as long as they fit
    into the budget (growth_order). The proportion from before is drawn for each item, so that answers are anywhere in
    their windows. The window of a share stops as soon as it has at least this share of the full window's tokens.

    Args:
        shares: percent, 1 to 100.
        budget: tokens of the full window; if the answer's sentence is longer, it is the window.
        seed: seeds the draw, together with the item's identity.
        count_tokens: from texts to the number of tokens of each.
    """
    sentences, anchor = _sentences_around(item, budget)
    counts = count_tokens([item.document[start:end].rstrip(" ") for start, end in sentences])
    order = growth_order(counts, anchor, budget, random.Random(f"{seed} {item.item}"))
    grown = list(accumulate(counts[sentence] for sentence in order))
    result = []
    for share in shares:
        size = next(size for size, tokens in enumerate(grown, start=1) if 100 * tokens >= share * grown[-1])
        start, end = sentences[min(order[:size])][0], sentences[max(order[:size])][1]
        text = item.document[start:end].rstrip()
        position = (sum(item.answer_span) / 2 - start) / len(text)
        result.append(Window(text, grown[size - 1], position))
    return result


def _sentences_around(item: Item, budget: int) -> tuple[list[Span], int]:
    """Sentences that could be in the window, those that the answer extends over joined to one, and its index."""
    sentences = split_sentences(item.document)
    starts = [start for start, _ in sentences]
    first, last = (bisect_right(starts, at) - 1 for at in (item.answer_span[0], item.answer_span[1] - 1))
    reach = CHARACTERS_PER_TOKEN * budget
    anchor = sentences[first][0], sentences[last][1]
    before = [span for span in sentences[:first] if anchor[0] - span[0] <= reach]
    behind = [span for span in sentences[last + 1 :] if span[1] - anchor[1] <= reach]
    return [*before, anchor, *behind], len(before)


def growth_order(counts: Sequence[int], anchor: int, budget: int, generator: random.Random) -> list[int]:
    """Indices of sentences in the order in which a window gets them; the first ones are always a run without gaps.

    Args:
        counts: tokens of each sentence.
        anchor: index of the first sentence, taken whatever its length.
        budget: tokens; no more sentences are taken from a side once its next one does not fit.
        generator: draws the probability of taking a sentence from before the anchor, then the side of each sentence.
    """
    order, total = [anchor], counts[anchor]
    before, behind = anchor - 1, anchor + 1
    share_before = generator.random()
    while before >= 0 or behind < len(counts):
        from_before = behind >= len(counts) or (before >= 0 and generator.random() < share_before)
        sentence = before if from_before else behind
        if total + counts[sentence] > budget:  # no more from that side
            before, behind = (-1, behind) if from_before else (before, len(counts))
            continue
        order.append(sentence)
        total += counts[sentence]
        before, behind = (before - 1, behind) if from_before else (before, behind + 1)
    return order


def alias_texts(answer: object, where: str) -> tuple[str, ...]:
    """All right answers of TriviaQA's `answer`: its value, aliases and normalised aliases.

    Raises:
        ValueError: it is no such object, or holds no text.
    """
    if not isinstance(answer, dict):
        raise ValueError(f"{where}: 'answer' is no object with a value and aliases but {type(answer).__name__}")
    lists = (answer.get(name) or [] for name in ("aliases", "normalized_aliases"))
    return answer_texts([answer.get("value"), *chain.from_iterable(lists)], where, "answer")


def answer_texts(texts: object, where: str, field: str) -> tuple[str, ...]:
    """The distinct texts of a list, without nulls and white space.

    Raises:
        ValueError: no list, an element that is no text, or no text is left.
    """
    if not isinstance(texts, Sequence) or isinstance(texts, str):
        raise ValueError(f"{where}: {field!r} is no list of texts but {type(texts).__name__}")
    distinct = _distinct(text for text in texts if text is not None and valid_text(text, where, field).strip())
    if not distinct:
        raise ValueError(f"{where}: {field!r} holds no text")
    return distinct


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _column(records: object, name: str, where: str, field: str) -> list[Any]:
    """One field of all records: these are a dict of lists on the hub, a list of dicts in JSON files."""
    if isinstance(records, dict):
        return list(records.get(name) or [])
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{where}: {field!r} is no list of records")
    return [record.get(name) for record in records]


def _texts(values: Sequence[object], where: str, field: str) -> list[str]:
    """The texts among `values`, without nulls and white space."""
    return [text for text in values if text is not None and valid_text(text, where, field).strip()]


def _trivia_qa(row: dict[str, Any], where: str) -> _Row:
    pages = _texts(_column(row["entity_pages"], "wiki_context", where, "entity_pages"), where, "wiki_context")
    results = _texts(_column(row["search_results"], "search_context", where, "search_results"), where, "search_context")
    by_rank = chain.from_iterable(zip_longest(pages, results))  # the original takes the first of each
    return _Row([text for text in by_rank if text is not None], alias_texts(row["answer"], where))


def _retrieved(row: dict[str, Any], where: str) -> _Row:
    """Retrieved passages, of about a hundred words each, joined to one document in the order of their rank."""
    if not isinstance(row["contexts"], list):
        raise ValueError(f"{where}: 'contexts' is no list")
    passages = [passage.get("text") if isinstance(passage, dict) else passage for passage in row["contexts"]]
    text = "\n\n".join(passage.strip() for passage in _texts(passages, where, "contexts"))
    return _Row([text], alias_texts(row["answer"], where))


def _squad(row: dict[str, Any], where: str) -> _Row:
    """The answer's span is the annotated one; without annotations, as in the default assets, find_answer's."""
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
            raise ValueError(f"{where}: 'answers': {text!r} is not at character {start!r} of 'context'")
    # Some annotations of "8" are in "18": takes the first that is whole words, else find_answer's.
    spans = ((start, start + len(text)) for text, start in zip(texts, starts, strict=True))
    return _Row([context], answers, next((span for span in spans if _is_whole(context, span)), None))


def _is_whole(text: str, span: Span) -> bool:
    """Whether a span of a text is whole words."""
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
