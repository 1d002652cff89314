"""Is architecture search worth its compute?"""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.report.section import section
from metalearn.report.sections import Section
from metalearn.results.records import Json
from metalearn.results.searches import (
    candidate_count,
    has_search,
    is_control,
    searches,
    tuning_trials,
)


@section("Is architecture search worth its compute?", template="search.html.j2")
def search(rows: Section, pages: Sequence[Section]) -> Json:
    """Searches, and the controls that a page on them needs and these rows do not hold."""
    search_groups = searches(rows.groups)
    random = [candidate_count(group.first) for group in search_groups if is_control(group.first)]
    other_groups = [group for group in rows.groups if not any(map(has_search, group.runs))]
    lacking = {
        "the mean random architecture (random search with candidates: 1)": 1 not in random,
        "random search at equal budget": not any(count > 1 for count in random),
        "a fixed network with tuned hyper-parameters": not any(
            tuning_trials(g.first) for g in other_groups
        ),
    }
    return {
        "searches": search_groups,
        "lacking_controls": [name for name in lacking if lacking[name]],
    }
