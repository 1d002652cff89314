"""Pages that mkdocs makes of data when it builds the site, and examples shown as code.

The pages are written by metalearn/report/site_pages.py and metalearn/bench/page.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor
from mkdocs.structure.files import File

from metalearn.bench.page import page
from metalearn.report.site_pages import figures, pages

ARGUMENT = re.compile(r"^([a-z_]\w*): ")
EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def on_config(config: Any) -> Any:
    """Docstrings are Markdown, where `>>> ` would begin a quotation."""
    config.markdown_extensions.append(Examples())
    return config


def on_files(files: Any, config: Any) -> Any:
    """The files of the site and the generated ones."""
    benchmarks, drawn = page(EXPERIMENTS / "benchmarks")
    for path, text in {**pages(EXPERIMENTS), "benchmarks.md": benchmarks, **drawn}.items():
        files.append(File.generated(config, path, content=text))
    for figure in figures(EXPERIMENTS):
        path = f"figures/{figure.name}"
        files.append(File.generated(config, path, abs_src_path=str(figure)))
    return files


class Examples(Extension):
    """In docstrings: paragraphs of `>>> ` lines as code, those of `argument: ` lines as lists."""

    def extendMarkdown(self, md: Any) -> None:
        """Before fences are looked for."""
        md.preprocessors.register(_Docstring(md), "examples", 100)


class _Docstring(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return [line for paragraph in _paragraphs(lines) for line in _changed(paragraph)]


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Lines up to an empty one, outside of fences."""
    paragraph, inside = list[str](), False
    for line in lines:
        inside ^= line.lstrip().startswith("```")
        paragraph.append(line)
        if not line.strip() and not inside:
            yield paragraph
            paragraph = []
    yield paragraph


def _changed(paragraph: list[str]) -> list[str]:
    lines = [line for line in paragraph if line.strip()]
    if lines and lines[0].startswith(">>> "):
        return ["```pycon", *lines, "```", ""]
    arguments = [ARGUMENT.match(line) for line in lines]
    if lines and arguments[0] and all(a or line[:4] == "    " for a, line in zip(arguments, lines)):
        return [ARGUMENT.sub(r"* `\1`: ", line) for line in lines] + [""]
    return paragraph
