"""A section of the report: what every method did at its own inner step size."""

from collections.abc import Sequence
from typing import Any

import metalearn as ml

TEMPLATE = """
<p>{% for row in rates %}{{ row.label }}: {{ row.rate }}{{ ", " if not loop.last }}{% endfor %}.</p>
"""


@ml.section("With which inner step sizes?", template=TEMPLATE)
def signs(rows: Any, pages: Sequence[Any]) -> dict[str, Any]:
    """Step sizes on the support set."""
    configs = {group.label: group.first.config.get("method", {}) for group in rows.groups}
    return {
        "rates": [
            {"label": label, "rate": config.get("inner_lr", "none")}
            for label, config in configs.items()
        ]
    }
