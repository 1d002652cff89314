"""Pages that mkdocs makes of data when it builds the site.

They are written by metalearn/report/site_pages.py and metalearn/bench/page.py.
"""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from metalearn.bench.page import page
from metalearn.report.site_pages import figures, pages

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def on_files(files: Any, config: Any) -> Any:
    """The files of the site and the generated ones."""
    benchmarks, drawn = page(EXPERIMENTS / "benchmarks")
    for path, text in {**pages(EXPERIMENTS), "benchmarks.md": benchmarks, **drawn}.items():
        files.append(File.generated(config, path, content=text))
    for figure in figures(EXPERIMENTS):
        path = f"figures/{figure.name}"
        files.append(File.generated(config, path, abs_src_path=str(figure)))
    return files
