"""The shell of a report page: one style sheet, no scripts, nothing to load."""

from __future__ import annotations

from collections.abc import Collection
from html import escape

_STYLE = """
:root { color-scheme: light; --ink: #1f2328; --soft: #57606a; --line: #d8dee4; --wash: #f6f8fa; --good: #116329;
  --bad: #a40e26 }
* { box-sizing: border-box }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
main { max-width: 1060px; margin: 0 auto; padding: 28px 24px 64px }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em }
h2 { font-size: 22px; line-height: 1.25; margin: 48px 0 8px; padding-top: 12px; border-top: 1px solid var(--line) }
h3 { font-size: 17px; margin: 32px 0 6px }
p { margin: 8px 0; max-width: 74ch; overflow-wrap: anywhere }
.meta, figcaption, .note { color: var(--soft); font-size: 14px }
.answer { font-size: 18px; line-height: 1.5; margin: 16px 0 8px; padding: 12px 16px;
  border-left: 4px solid #0072b2; background: var(--wash); max-width: none }
.number { color: #0072b2; margin-right: 6px }
.checklist { font-size: 15px; max-width: none }
.unanswered { background: var(--wash); border-radius: 6px; padding: 10px 14px; color: var(--soft) }
.demo { background: #fff8c5; border: 1px solid #d4a72c; border-radius: 6px; padding: 10px 14px; margin: 0 0 20px;
  max-width: none }
figure { margin: 16px 0 24px }
figure.plot svg { display: block; width: 100%; height: auto }
figure.plot .wide { max-width: 880px }
figure.plot .narrow { display: none; max-width: 460px }
figcaption { margin-top: 4px; max-width: 84ch }
.pair { display: grid; grid-template-columns: minmax(0, 1fr); gap: 8px }
.scroll { overflow-x: auto; margin: 10px 0; border: 1px solid var(--line); border-radius: 6px; max-width: 100% }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: 6px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid #eaeef2;
  vertical-align: baseline }
tr:last-child > td, tr:last-child > th { border-bottom: 0 }
thead th { background: var(--wash); font-weight: 600; vertical-align: bottom; border-bottom: 1px solid var(--line);
  line-height: 1.3 }
thead th small, tbody th > small { display: block; font-weight: 400; color: var(--soft) }
th:first-child, td:first-child, .l { text-align: left }
tbody th { font-weight: 600; position: sticky; left: 0; background: #fff }
thead th:first-child { position: sticky; left: 0 }
td.wrap { white-space: normal; min-width: 24em; text-align: left; overflow-wrap: anywhere }
td.short { min-width: 15em } .sideways { display: none }
td small { color: var(--soft) }
tr.best > * { background: #f0f7ff }
tr.paper > * { color: var(--soft); font-style: italic }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 8px }
.pass { color: var(--good); font-weight: 600 } .fail { color: var(--bad); font-weight: 600 }
details { border: 1px solid var(--line); border-radius: 6px; margin: 8px 0; padding: 0 12px }
details > summary { cursor: pointer; padding: 8px 0; overflow-wrap: anywhere }
details .scroll { margin: 0 0 12px }
pre { margin: 0; padding: 10px 12px; overflow-x: auto;
  font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--wash);
  border-radius: 6px }
details pre { margin-bottom: 12px }
.tasks { display: flex; flex-wrap: wrap; gap: 20px 32px }
.task { max-width: 100%; overflow-x: auto }
.task table { width: auto } .task td, .task th { border: 0; padding: 2px 4px; text-align: center; background: none;
  vertical-align: top; font-weight: 400; color: var(--soft) }
.task tr + tr td { padding-top: 6px }
.task th:first-child, .task td:first-child { text-align: right; padding-right: 8px; position: static }
.task img { display: block; width: 46px; image-rendering: pixelated; border: 1px solid var(--line) }
footer { margin-top: 48px; color: var(--soft); font-size: 13px }
@media (max-width: 700px) {
  main { padding: 18px 14px 48px } h1 { font-size: 25px } h2 { font-size: 20px; margin-top: 36px }
  .answer { font-size: 16px }
  figure.plot .wide { display: none } figure.plot .narrow { display: block }
  th, td { padding: 5px 9px } .long { display: block; white-space: normal; max-width: 9em }
  td.wrap { min-width: 17em } td.short { min-width: 12em } .task img { width: 40px } .sideways { display: block }
}
@media print { main { max-width: none } .scroll { overflow: visible } details { break-inside: avoid } }
"""


def page(title: str, body: str) -> str:
    """A whole document; `body` is HTML, `title` is text."""
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(heads: list[str], rows: list[str], *, left: Collection[int] = ()) -> str:
    """A table in a box that scrolls sideways; heads and rows are HTML, heads at the places `left`
    stand left.
    """
    marks = [' class="l"' if place in left else "" for place in range(len(heads))]
    cells = "".join(f'<th scope="col"{mark}>{head}</th>' for mark, head in zip(marks, heads))
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def row(head: str, cells: list[str], kind: str = "") -> str:
    """One table row from HTML cells; a cell that begins with `<td` stands as it is."""
    body = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
    mark = f' class="{kind}"' if kind else ""
    return f'<tr{mark}><th scope="row">{head}</th>{body}</tr>'


def left(text: str) -> str:
    return f'<td class="l">{text}</td>'


def plot(wide: str, narrow: str, caption: str) -> str:
    """A figure in its two sizes; all three are HTML."""
    return (
        f'<figure class="plot">\n<div class="wide">{wide}</div>\n<div '
        f'class="narrow">{narrow}</div>\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )


def details(summary: str, body: str, *, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{summary}</summary>\n{body}\n</details>"
