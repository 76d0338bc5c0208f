import argparse
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from setting_values import values_of

from llm_tasks.engine.answers import contains
from llm_tasks.levels import item_id
from llm_tasks.settings import context_length
from llm_tasks.tasks import reading
from llm_tasks.tasks.reading import Item, Window, find_answer, growth_order, load, split_sentences, windows

SHARES = [20, 40, 60, 80, 100]


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text)]


def make_item(document: str, *answers: str, question: str = "Who?") -> Item:
    return Item(
        item_id(question, document), item_id(document), question, document, answers, find_answer(document, answers)
    )


def random_item(number: int, longest: int = 12) -> Item:
    """A document of 1 to 30 sentences of different words, one of which is the answer."""
    draw = random.Random(number)
    lengths = [draw.randint(1, longest) for _ in range(draw.randint(1, 30))]
    texts = [" ".join(f"W{place}x{word}" for word in range(length)) for place, length in enumerate(lengths)]
    return make_item(draw.choice([". ", ".\n", "! "]).join(texts) + ".", f"w{draw.randrange(len(texts))}x0")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as <tmp_path>/<folder>/<split>.jsonl; returns the --data_dir."""

    def write(folder: str, split: str, *rows: dict) -> Path:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One two. Three four! Five? Six", ["One two. ", "Three four! ", "Five? ", "Six"]),
        (
            'He said "No." She left. (Then) "Stop!" he cried.',
            ['He said "No." ', "She left. ", '(Then) "Stop!" he cried.'],
        ),
        ("Dr. No met Mr. T. Then J. R. R. came.", ["Dr. No met Mr. T. Then J. R. R. came."]),
        ("Of the U.S. Army. In St. Louis", ["Of the U.S. Army. ", "In St. Louis"]),
        ("In St. Louis, vs. Rome. Élan vital. 20 more. end", ["In St. Louis, vs. Rome. ", "Élan vital. 20 more. end"]),
        ("Title\nfirst line\n\n  second. Third ", ["Title\n", "first line\n\n  ", "second. ", "Third "]),
        ("It is 3.5 m. no capital follows", ["It is 3.5 m. no capital follows"]),
        ("\n Begins. Ends.\n", ["Begins. ", "Ends.\n"]),
        ("one", ["one"]),
        (" \n", []),
        ("", []),
    ],
)
def test_sentences_by_hand(text: str, parts: list[str]):
    assert sentences(text) == parts
    assert "".join(parts) == text.lstrip()


def test_the_longest_answer_that_a_sentence_holds_is_found_where_it_stands_first():
    document = "York is old. New York is big. The New York of old."
    assert find_answer(document, ["York", "New York"]) == (13, 21)
    assert find_answer(document, ["york"]) == (0, 4)
    assert find_answer(document, ["new  YORK of the old!"]) == (34, 49)
    assert document[34:49] == "New York of old"
    assert find_answer(document, ["the big"]) == (25, 28)
    assert find_answer("Fiddler, (on the roof)", ["Fiddler on Roof"]) == (0, 21)


def test_answers_are_whole_words_and_not_put_together_from_two_sentences():
    assert find_answer("Yorkshire and New Yorkers", ["York"]) is None
    assert find_answer("It was Bush. House prices fell.", ["Bush House"]) is None
    assert find_answer("", ["York"]) is None
    assert find_answer("so it is", ["the", "?"]) is None


def test_answers_that_no_sentence_holds_count_where_they_stand_letter_by_letter():
    document = "They played Guess Who? Live that day. Its grade: A+ (top). In 1914–1918 war."  # noqa: RUF001
    assert document[slice(*find_answer(document, ["Guess who? live"]))] == "Guess Who? Live"
    assert document[slice(*find_answer(document, ["A+"]))] == "A+"
    assert document[slice(*find_answer(document, ["1918"]))] == "1918"
    vitamin = "It is a vitamin, vitamin A."
    assert find_answer(vitamin, ["A"]) == (25, 26)
    item = make_item(document, "Guess who? live")
    assert windows(item, [1], 5, 0, count_words)[0].text == "They played Guess Who? Live that day."


def test_growth_by_hand():
    class OnlyBefore(random.Random):
        def random(self) -> float:
            return 0.0 if self.drawn else self.first()

        drawn = False

        def first(self) -> float:
            self.drawn = True
            return 1.0  # all of it comes from before

    counts = [3, 2, 4, 1, 5]
    assert growth_order(counts, 2, 15, OnlyBefore()) == [2, 1, 0, 3, 4]
    assert growth_order(counts, 2, 8, OnlyBefore()) == [2, 1, 3]  # 3 does not fit; what is behind does
    assert growth_order(counts, 2, 6, OnlyBefore()) == [2, 1]
    assert growth_order(counts, 4, 1, OnlyBefore()) == [4]  # longer than the budget: it is all there is
    assert growth_order([7], 0, 100, OnlyBefore()) == [0]


def test_shares_by_hand():
    item = make_item("Alpha beta gold. One two three four five. Six.", "gold")
    texts = {share: windows(item, [share], 9, 0, count_words)[0] for share in (33, 34, 88, 89, 100)}
    assert texts[33] == Window("Alpha beta gold.", 3, pytest.approx(13 / 16))
    assert texts[34].text == texts[88].text == "Alpha beta gold. One two three four five."
    assert texts[34].num_tokens == 8
    assert texts[89].text == texts[100].text == item.document
    assert windows(item, [100], 8, 0, count_words)[0].num_tokens == 8
    assert windows(item, [20, 100], 2, 0, count_words) == [texts[33]] * 2


@pytest.mark.parametrize("budget", [1, 15, 60, 1000])
def test_windows_are_nested_runs_of_whole_sentences_of_the_size_asked_for(budget: int):
    for number in range(60):
        item = random_item(number)
        parts = sentences(item.document)
        own = windows(item, SHARES, budget, 7, count_words)
        anchor = next(place for place, part in enumerate(parts) if contains(part, item.answers))
        runs = []
        for window in own:
            fits = [
                (first, last) for first in range(anchor + 1) for last in range(anchor, len(parts))
                if "".join(parts[first : last + 1]).rstrip() == window.text
            ]  # fmt: skip
            assert len(fits) == 1  # whole sentences, in the document's order, the answer's among them
            runs += fits
            assert window.num_tokens == len(window.text.split())
            middle = window.text.lower().index(item.answers[0]) + len(item.answers[0]) / 2
            assert window.answer_position == pytest.approx(middle / len(window.text))
        assert all(a[0] >= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(runs))
        full = own[-1].num_tokens
        first, last = runs[-1]
        neighbours = [parts[place] for place in (first - 1, last + 1) if 0 <= place < len(parts)]
        assert full <= budget or runs[-1] == (anchor, anchor)
        assert all(full + len(part.split()) > budget for part in neighbours)
        for share, window in zip(SHARES, own, strict=True):
            assert 0 <= window.num_tokens - share / 100 * full < 12 + 1e-9  # the longest sentence has 12 words


def test_answers_stand_anywhere_in_their_windows_and_the_seed_moves_them():
    before, behind = ([f"{letter}{place} b c" for place in range(30)] for letter in "AZ")
    document = ". ".join([*before, "Gold it is", *behind])
    items = [make_item(document, "gold", question=str(number)) for number in range(200)]
    first, second = ([windows(item, [100], 90, seed, count_words)[0] for item in items] for seed in (0, 1))
    positions = sorted(window.answer_position for window in first)
    assert 0.45 < sum(positions) / 200 < 0.55
    assert positions[20] < 0.2 and positions[-20] > 0.8
    assert sum(one != other for one, other in zip(first, second, strict=True)) > 150


def test_what_is_far_from_the_answer_is_not_even_counted():
    seen = []

    def count(texts: list[str]) -> list[int]:
        seen.extend(texts)
        return count_words(texts)

    item = make_item("Far away. " * 1000 + "Gold is here. " + "Far away. " * 1000, "gold")
    assert windows(item, [100], 20, 0, count)[0].num_tokens == 19
    assert len(seen) < 70


def trivia_row(pages: list[str], found: list[str], records: bool, **answer: object) -> dict:
    answer = {"value": "Gold", "aliases": ["Au"], "normalized_aliases": ["gold", "au"], **answer}
    if records:
        pages = [{"wiki_context": text, "title": "t"} for text in pages]
        found = [{"search_context": text, "rank": 1} for text in found]
    else:
        pages, found = {"wiki_context": pages, "title": []}, {"search_context": found}
    return {"question": " Which metal? ", "entity_pages": pages, "search_results": found, "answer": answer}


@pytest.mark.parametrize("records", [True, False])
def test_trivia_qa_takes_the_first_document_in_rank_order_that_holds_an_answer(write: Callable, records: bool):
    data_dir = write(
        "trivia_qa/rc", "validation",
        trivia_row(["It is gold.", "Au."], ["Gold!"], records),
        trivia_row(["Nothing.", "Au here."], ["Golden.", "Gold."], records),
        trivia_row(["Nothing."], ["", "More gold."], records),
        trivia_row([], [], records),
        trivia_row(["Silver."], ["Golden."], records),
    )  # fmt: skip
    found = load("triviaqa", data_dir)
    assert [item.document for item in found.items] == ["It is gold.", "Au here.", "More gold."]
    assert found.without_answer == 2 and found.repeated == 0
    assert found.items[0].question == "Which metal?"
    assert found.items[0].answers == ("Gold", "Au", "gold", "au")
    assert found.items[0].answer_span == (6, 10)
    assert len({item.item for item in found.items}) == 3


def test_trivia_qa_of_the_hub_is_read_one_by_one_where_items_are_limited(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def read_source(source: reading.Source, data_dir: Path | None, first: int | None) -> list[tuple[str, dict]]:
        asked.append((source.folder, first))
        row = trivia_row(["Gold."], [], True)
        return [("row 1", {**row, "context": "Gold.", "answers": {"text": ["Gold"], "answer_start": [0]}})]

    monkeypatch.setattr(reading, "read_source", read_source)
    load("triviaqa", None, 5), load("triviaqa", None), load("triviaqa", Path("x"), 5), load("squad", None, 5)
    assert asked == [("trivia_qa/rc", 5), ("trivia_qa/rc", None), ("trivia_qa/rc", None), ("squad", None)]


def test_squad_takes_the_annotated_mention(write: Callable):
    context = "In 18 games 8 won. They had 8 men."
    row = {"context": context, "question": "How many?", "answers": {"text": ["8", "8 men"], "answer_start": [4, 28]}}
    as_records = [{"text": "8", "answer_start": 12}]
    found = load("squad", write("squad", "validation", row, {**row, "question": "And?", "answers": as_records}, row))
    assert [item.answer_span for item in found.items] == [(28, 33), (12, 13)]  # the 8 of 18 is no whole word
    assert found.items[0].group == found.items[1].group
    assert found.repeated == 1


@pytest.mark.parametrize("answers", [{"text": ["gold", "au"]}, [{"text": "gold"}]])
def test_squad_without_annotated_places_is_searched(write: Callable, answers: object):
    row = {"question": "Which?", "context": "It is gold.", "answers": answers}
    assert load("squad", write("squad", "validation", row)).items[0].answer_span == (6, 10)


def test_repeated_items_have_the_answers_of_all_their_rows(write: Callable):
    row = {"question": "Which?", "context": "Gold or silver."}
    found = load(
        "nq_open_gold_context",
        write(
            "nq_open_gold_context", "validation", {**row, "answers": ["gold"]}, {**row, "answers": ["silver", "gold"]}
        ),
    )
    assert found.repeated == 1
    assert [item.answers for item in found.items] == [("gold", "silver")]


def test_retrieved_passages_are_one_document(write: Callable):
    answer = {"value": None, "aliases": ["Gold"]}
    contexts = [{"title": "t", "text": " One. "}, "It is gold."]
    data_dir = write(
        "trivia_qa_retrieved", "dev_sample", {"question": "Which?", "contexts": contexts, "answer": answer}
    )
    assert load("trivia_qa_retrieved", data_dir).items[0].document == "One.\n\nIt is gold."


GOLD = {"question": "Which?", "context": "It is gold.", "answers": ["gold"]}
BAD_ROWS = [
    (
        "nq_open_gold_context",
        {"question": "Which?", "context": "Gold."},
        "lacks the field 'answers'; it has question, context",
    ),
    ("nq_open_gold_context", {**GOLD, "question": " "}, "'question' is empty"),
    ("nq_open_gold_context", {**GOLD, "context": None}, "'context' is no text but NoneType"),
    ("nq_open_gold_context", {**GOLD, "answers": []}, "'answers' holds no text"),
    ("nq_open_gold_context", {**GOLD, "answers": [" ", None]}, "'answers' holds no text"),
    ("nq_open_gold_context", {**GOLD, "answers": "gold"}, "'answers' is no list of texts but str"),
    ("nq_open_gold_context", {**GOLD, "answers": [1]}, "'answers' is no text but int"),
    (
        "squad",
        {**GOLD, "answers": {"text": ["gold"], "answer_start": [5]}},
        "'gold' is not at character 5 of 'context'",
    ),
    (
        "squad",
        {**GOLD, "answers": [{"text": "gold", "answer_start": 6}, {"text": "It"}]},
        "'It' is not at character None",
    ),
    (
        "squad",
        {**GOLD, "answers": {"text": ["gold", "It"], "answer_start": [6]}},
        "'answers' has 2 texts and 1 answer_start",
    ),
    ("squad", {**GOLD, "answers": {"text": [], "answer_start": []}}, "'answers' holds no text"),
    ("squad", {**GOLD, "answers": "gold"}, "'answers' is no list of records"),
    (
        "triviaqa",
        {**trivia_row(["Gold."], [], True), "answer": "gold"},
        "'answer' is no object with a value and aliases but str",
    ),
    (
        "triviaqa",
        trivia_row(["Gold."], [], True, value="", aliases=[], normalized_aliases=None),
        "'answer' holds no text",
    ),
    (
        "triviaqa",
        {**trivia_row(["Gold."], [], True), "entity_pages": ["Gold."]},
        "'entity_pages' is no list of records",
    ),
    ("triviaqa", trivia_row([1], [], True), "'wiki_context' is no text but int"),
    ("trivia_qa_retrieved", {"question": "Which?", "contexts": "Gold.", "answer": {}}, "'contexts' is no list"),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD_ROWS, ids=[message for *_, message in BAD_ROWS])
def test_damaged_rows_name_file_line_and_field(write: Callable, name: str, row: dict, message: str):
    source = reading.CONTEXT_SETS[name].source
    good = {
        "nq_open_gold_context": GOLD,
        "squad": {**GOLD, "answers": {"text": ["gold"], "answer_start": [6]}},
        "triviaqa": trivia_row(["Gold."], [], True),
        "trivia_qa_retrieved": {"question": "W?", "contexts": ["Gold"], "answer": {"value": "gold"}},
    }[name]
    data_dir = write(source.folder, source.split, good, row)
    with pytest.raises(ValueError) as error:
        load(name, data_dir)
    assert message in str(error.value)
    assert f"{source.folder}/{source.split}.jsonl, line 2" in str(error.value)


def test_no_context_with_its_answer_and_sets_that_only_files_have_are_refused(write: Callable):
    data_dir = write("nq_open_gold_context", "validation", {**GOLD, "context": "Silver."})
    with pytest.raises(ValueError, match="nq_open_gold_context: none of the 1 contexts contains an answer"):
        load("nq_open_gold_context", data_dir)
    with pytest.raises(ValueError, match="--data_dir"):
        load("trivia_qa_retrieved", None)


class WordTokenizer:
    """Counts words; remembers how many texts it was given."""

    def __init__(self):
        self.texts = 0

    def __call__(self, texts: list[str], **options: object) -> dict[str, list[list[int]]]:
        assert options["add_special_tokens"] is False
        self.texts += len(texts)
        return {"input_ids": [[0] * len(text.split()) for text in texts]}


def parsed(*argv: str, data_dir: Path | None = None, max_items: int | None = None) -> context_length.Values:
    return values_of(context_length.SETTING, *argv, data_dir=data_dir, max_items=max_items)


def gold_rows(count: int) -> list[dict]:
    items = [random_item(number) for number in range(count)]
    return [
        {"question": f"Which {number}?", "context": item.document, "answers": list(item.answers)}
        for number, item in enumerate(items)
    ]


def test_levels_of_setting_3(write: Callable):
    rows = [*gold_rows(20), {**GOLD, "context": "None."}]
    data_dir = write("nq_open_gold_context", "validation", *rows)
    args = parsed("--context_dataset", "nq_open_gold_context", "--context_tokens", "40", data_dir=data_dir)
    made = context_length.build(context_length.load(args), args, 0, WordTokenizer())
    assert [level.name for level in made] == ["20 %", "40 %", "60 %", "80 %", "100 %", "closed book"]
    difficulties = [level.difficulty for level in made]
    assert difficulties == sorted(difficulties) and difficulties[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert {level.reader for level in made} == {"answer"} and {level.dataset for level in made} == {
        "nq_open_gold_context"
    }
    assert [level.facts["context_without_answer"] for level in made] == [1] * 6
    for prompts in zip(*(level.prompts for level in made), strict=True):
        assert len({(prompt.item, prompt.group, prompt.question, prompt.answers) for prompt in prompts}) == 1
        for prompt in prompts[:5]:
            assert contains(
                prompt.header.removesuffix("\n\nBased on these texts, answer these questions:\n\n"), prompt.answers
            )
    sizes = [level.facts["mean_context_tokens"] for level in made[:5]]
    assert sizes == sorted(sizes) and sizes[-1] <= 40
    assert made[0].facts["same_as_smaller_share"] == 0 and "mean_context_tokens" not in made[5].facts
    assert context_length.files(args) == [data_dir / "nq_open_gold_context/validation.jsonl"]


def test_prompts_of_setting_3_by_hand(write: Callable):
    data_dir = write("nq_open_gold_context", "validation", {**GOLD, "context": "It is gold. It shines. Not silver."})
    args = parsed("--context_dataset", "nq_open_gold_context", "--context_shares", "100", "10", data_dir=data_dir)
    short, full, closed = context_length.build(context_length.load(args), args, 0, WordTokenizer())
    texts = [prompt.header + prompt.question for level in (short, full, closed) for prompt in level.prompts]
    assert texts == [
        "It is gold.\n\nBased on these texts, answer these questions:\n\nQ: Which?\nA:",
        "It is gold. It shines. Not silver.\n\nBased on these texts, answer these questions:\n\nQ: Which?\nA:",
        "Answer these questions:\n\nQ: Which?\nA:",
    ]
    assert short.facts["mean_context_tokens"] == 3 and full.facts["mean_context_tokens"] == 7
    assert short.facts["mean_answer_position"] == pytest.approx(8 / 11)
    args = parsed(
        "--context_dataset", "nq_open_gold_context", "--no_closed_book", "--context_tokens", "2", data_dir=data_dir
    )
    made = context_length.build(context_length.load(args), args, 0, WordTokenizer())
    assert len(made) == 5 and {level.facts["longer_than_window"] for level in made} == {1}
    assert [level.facts["same_as_smaller_share"] for level in made] == [0, 1, 1, 1, 1]


def test_windows_follow_from_seed_and_item_whatever_stands_around_it(write: Callable):
    rows = gold_rows(30)

    def prompts(rows: list[dict], seed: int, max_items: int | None = None) -> dict[str, list[str]]:
        data_dir = write("nq_open_gold_context", "validation", *rows)
        args = parsed(
            "--context_dataset",
            "nq_open_gold_context",
            "--context_tokens",
            "30",
            data_dir=data_dir,
            max_items=max_items,
        )
        made = context_length.build(context_length.load(args), args, seed, WordTokenizer())
        return {
            own[0].question: [prompt.header for prompt in own]
            for own in zip(*(level.prompts for level in made), strict=True)
        }

    first = prompts(rows, 0)
    assert prompts(rows[::-1], 0) == first
    few = prompts(rows, 0, max_items=7)
    assert len(few) == 7 and few.items() <= first.items()
    assert prompts(rows[::-1], 0, max_items=7) == few
    other = prompts(rows, 1)
    assert other.keys() == first.keys() and other != first


def test_sentences_that_questions_share_are_counted_once(write: Callable):
    context = "It is gold. It shines."
    data_dir = write(
        "nq_open_gold_context", "validation", *({**GOLD, "context": context, "question": text} for text in "abc")
    )
    args = parsed("--context_dataset", "nq_open_gold_context", data_dir=data_dir)
    tokenizer = WordTokenizer()
    context_length.build(context_length.load(args), args, 0, tokenizer)
    assert tokenizer.texts == 2


def test_options_of_setting_3_that_are_refused():
    with pytest.raises(ValueError, match="--context_shares 20 50 20: a number is given twice"):
        context_length.load(parsed("--context_shares", "20", "50", "20"))
    for option, value in (
        ("--context_shares", "0"),
        ("--context_shares", "101"),
        ("--context_tokens", "0"),
        ("--context_dataset", "x"),
    ):
        with pytest.raises(argparse.ArgumentError, match=option):
            parsed(option, value)
