"""`run.track`: one section a sink, made from the table."""

from __future__ import annotations

from typing import Any

from pydantic import create_model

from metalearn.component import Component, option
from metalearn.tracking import SINKS

_fields: dict[str, Any] = {
    name: (kind, option(kind(), kind.sentence())) for name, kind in SINKS.items()
}
Track: Any = create_model(
    "Track", __base__=Component, __doc__="Where a run is logged besides metrics.jsonl.", **_fields
)
