"""report.html: the summary with its figures and tables in one file that needs no other.

It reads only the Markdown that analysis.summary writes: headings, paragraphs, bullets, tables, figures and file names
(in backticks) on lines of their own, **bold** and `code`.
"""

import base64
import html
import itertools
import re
from collections.abc import Iterable, Iterator

SHORT_CELL = 32  # letters
LONG_TABLE = 14  # rows; longer tables are folded
TYPES = {".png": "image/png", ".svg": "image/svg+xml", ".pdf": "application/pdf", ".csv": "text/csv"}
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1180px; margin: 0 auto;
       padding: 1.5rem; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; padding-top: .8rem; border-top: 2px solid #ddd; }
nav { background: #f6f6f4; padding: .6rem 1.2rem; border-radius: 6px; }
nav ul { columns: 2; padding-left: 1.1rem; margin: .3rem 0; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
h1, h2, h3, p, li, summary { overflow-wrap: anywhere; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e2e2e2; text-align: left; vertical-align: top; }
th { background: #f6f6f4; position: sticky; top: 0; }
td.short { white-space: nowrap; }
td.long { min-width: 16rem; }
summary { cursor: pointer; color: #0b5394; }
code { background: #f1f1ef; padding: 0 .2em; font-size: .92em; overflow-wrap: anywhere; }
@media (max-width: 600px) { body { padding: .8rem; } nav ul { columns: 1; } }
@media print { nav { display: none; } figure, tr { break-inside: avoid; } }
"""


def report_html(text: str, files: dict[str, bytes]) -> str:
    """The report as one HTML page without scripts and without links to anything outside it.

    Args:
        text: what summary.summary_text returned.
        files: content of the files that the text names; figures are shown, others can be saved from the page.
    """
    lines = text.splitlines()
    title = next((line.removeprefix("# ") for line in lines if line.startswith("# ")), "Report")
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    links = [f'<li><a href="#part{place}">{inline(heading)}</a></li>' for place, heading in enumerate(headings)]
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">",
        f"<title>{html.escape(title)}</title>", f"<style>{STYLE}</style>", "</head>", "<body>",
        *_blocks(lines, files, ["<nav>", "<ul>", *links, "</ul>", "</nav>"]),
        "</body>", "</html>", "",
    ])  # fmt: skip


def inline(text: str) -> str:
    """One line of text as HTML: escaped, with **bold** and `code`."""
    pieces = re.split(r"(`[^`]*`)", re.sub(r"\\([|<])", r"\1", text))
    return "".join(
        f"<code>{html.escape(piece[1:-1])}</code>" if place % 2 else _bold(piece) for place, piece in enumerate(pieces)
    )


def _bold(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text))


def _blocks(lines: list[str], files: dict[str, bytes], contents: list[str]) -> Iterator[str]:
    part = itertools.count()
    for kind, group in itertools.groupby(lines, key=_kind):
        found = list(group)
        if kind == "table":
            yield from _table(found)
        elif kind == "bullet":
            yield from ["<ul>", *(f"<li>{inline(line[2:])}</li>" for line in found), "</ul>"]
        elif kind == "heading":
            for line in found:
                marks, _, words = line.partition(" ")
                place = f' id="part{next(part)}"' if marks == "##" else ""
                yield f"<h{len(marks)}{place}>{inline(words)}</h{len(marks)}>"
                if marks == "#":
                    yield from contents
        elif kind == "file":
            yield from (_file(line, files) for line in found)
        elif kind == "text":
            yield f"<p>{inline(' '.join(found))}</p>"


def _kind(line: str) -> str:
    """The kind of block that a line belongs to."""
    if not line.strip():
        return "empty"
    if re.match(r"#{1,4} ", line):
        return "heading"
    if line.startswith("| "):
        return "table"
    if line.startswith("- "):
        return "bullet"
    return "file" if _file_name(line) else "text"


def _file_name(line: str) -> str | None:
    found = re.fullmatch(r"!\[(?P<shown>[^]]*)\]\([^)]*\)|`(?P<named>[^`]*\.\w+)`", line)
    return found and (found["shown"] or found["named"])


def _file(line: str, files: dict[str, bytes]) -> str:
    """A figure, or a link that saves the file, or the bare name where there is no such file."""
    name = _file_name(line)
    ending = name[name.rfind(".") :]
    if name not in files or ending not in TYPES:
        return f"<p>{inline(line)}</p>"
    address = f"data:{TYPES[ending]};base64,{base64.b64encode(files[name]).decode()}"
    shown = html.escape(name)
    if line.startswith("!"):
        return f'<figure><img src="{address}" alt="{shown}"></figure>'
    return f'<p><a download="{shown}" href="{address}">{shown}</a></p>'


def _table(lines: list[str]) -> Iterable[str]:
    head, _, *body = [_cells(line) for line in lines]
    rows = ["<tr>" + "".join(map(_data_cell, cells)) + "</tr>" for cells in body]
    titles = "".join(f"<th>{inline(cell)}</th>" for cell in head)
    table = ['<div class="table">', "<table>", f"<thead><tr>{titles}</tr></thead>", "<tbody>", *rows, "</tbody>",
             "</table>", "</div>"]  # fmt: skip
    if len(body) <= LONG_TABLE:
        return table
    return ["<details>", f"<summary>{len(body)} rows: {inline(', '.join(head))}</summary>", *table, "</details>"]


def _data_cell(cell: str) -> str:
    """A cell; short ones do not wrap, so that narrow screens scroll a table instead of folding it."""
    kind = "short" if len(cell) <= SHORT_CELL else "long"
    return f'<td class="{kind}">{inline(cell)}</td>'


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
