"""The experiments with a published number, one per line: `make reproduce-list`."""

from __future__ import annotations

from metalearn.compare.reproduce import published_plans


def lines() -> list[str]:
    """Return name, published number and source of every experiment that has one."""
    rows = []
    for one in (one for plan in published_plans([]) for one in plan.experiments if one.published):
        assert one.published is not None
        value = one.published.value
        half = f" ± {one.published.ci95:g}" if one.published.ci95 else ""
        curve = ", ".join(f"{step}: {at:g}" for step, at in one.published.curve.items())
        number = curve or ("" if value is None else f"{value:g}{half}")
        rows.append(f"{one.name}  {number}  ({one.published.source})")
    return rows


if __name__ == "__main__":
    print("\n".join(lines()))
