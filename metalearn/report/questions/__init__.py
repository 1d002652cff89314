"""The sections of a page: ten questions, one file each, and those of plug-ins.

A question that the runs cannot answer says why."""

from __future__ import annotations

from metalearn.config.registry import REPORT
from metalearn.report.questions.break_even import break_even
from metalearn.report.questions.cost import cost
from metalearn.report.questions.equal_compute import equal_compute
from metalearn.report.questions.noise import noise
from metalearn.report.questions.parts import parts
from metalearn.report.questions.search import search
from metalearn.report.questions.settings import settings
from metalearn.report.questions.shift import shift
from metalearn.report.questions.speed import speed
from metalearn.report.questions.target import target
from metalearn.report.section import Question

QUESTIONS: tuple[Question, ...] = (
    speed,
    target,
    search,
    equal_compute,
    break_even,
    parts,
    noise,
    settings,
    shift,
    cost,
)


def all_questions() -> list[Question]:
    """Return the ten, then those of plug-ins in the order of their registration."""
    return [*QUESTIONS, *(one for one in REPORT.values() if one not in QUESTIONS)]
