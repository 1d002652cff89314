"""Reports: one self-contained page, its tables and figures."""

from metalearn.callable_module import make_callable

CALLS = "metalearn.report.pages:write_pages"
make_callable(__name__)
