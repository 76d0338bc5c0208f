import base64
import re
from html.parser import HTMLParser

import pytest

from analysis import report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects what the page holds."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if not {"style"} & set(self.open):
            self.words.append(text)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


SUMMARY = """# Summary

| model | runs |
| --- | --- |
| **a\\|b** | 3 |

## First part

- one, in `code`
- two

![figure.png](figure.png)

`figure.csv`

### Scores

Text over
two lines.
"""


def test_every_kind_of_line_becomes_what_it_stands_for():
    page = Page(report.report_html(SUMMARY, {"figure.png": b"PNG", "figure.csv": b"a,b\n"}))
    for tag in ("h1", "h2", "h3", "table", "strong", "ul", "code", "figure", "nav"):
        assert tag in page.tags
    assert "a|b" in page.text and "Text over two lines." in page.text and "---" not in page.text
    assert page.tags.count("td") == 2 and page.tags.count("li") == 3  # two bullets and a line of contents


def test_figures_and_tables_are_inside_the_file_and_nothing_else_is_named():
    page = Page(report.report_html(SUMMARY, {"figure.png": b"PNG", "figure.csv": b"a,b\n"}))
    contents = {address.partition(";")[0]: address.partition("base64,")[2] for address in page.addresses}
    assert base64.b64decode(contents["data:image/png"]) == b"PNG"
    assert base64.b64decode(contents["data:text/csv"]) == b"a,b\n"
    assert all(address.startswith(("data:", "#part")) for address in page.addresses)


def test_a_file_that_was_not_written_is_named_and_not_linked():
    page = Page(report.report_html(SUMMARY, {}))
    assert "img" not in page.tags and "figure.csv" in page.text
    assert page.addresses == ["#part0"]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=http://x>', "a & b", "`<b>`", "**<i>**"])
def test_names_of_models_and_tasks_are_text_and_nothing_more(name):
    text = f"# {name}\n\n## {name}\n\n- {name}\n\n{name}\n\n| {name} |\n| --- |\n| {name} |\n"
    html = report.report_html(text, {})
    page = Page(html)
    shown = name.replace("`", "").replace("**", "")
    # window, both headings, contents, bullet, paragraph, head and cell of the table
    assert page.text.count(shown) == 8
    assert not {"script", "img", "b", "i"} & set(page.tags) and "http://x>" not in html


def test_narrow_screens_scroll_tables_and_shrink_figures():
    html = report.report_html(f"# S\n\n| a |\n| --- |\n| short |\n| {'long ' * 20} |\n", {})
    assert '<div class="table">' in html and '<td class="short">short</td>' in html and '<td class="long">long' in html
    for rule in ("img { max-width: 100%", ".table { overflow-x: auto; }", "td.short { white-space: nowrap; }"):
        assert rule in html
    assert 'name="viewport" content="width=device-width' in html


def test_long_tables_are_folded():
    rows = "".join(f"| {number} |\n" for number in range(40))
    page = Page(report.report_html(f"# S\n\n| number |\n| --- |\n{rows}", {}))
    assert "details" in page.tags and page.text.count("40 rows: number") == 1
    assert "details" not in Page(report.report_html("# S\n\n| number |\n| --- |\n| 1 |\n", {})).tags


def test_the_page_forbids_itself_to_load_anything():
    html = report.report_html(SUMMARY, {})
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'; img-src data:", html)
    assert "<script" not in html
