"""Measurements: learning curves, their statistics, and their cost.

Methods are arguments here; none is imported."""

from metalearn.evaluate.curves import Curve, learning_curve
from metalearn.evaluate.ledger import CostLedger

__all__ = ["CostLedger", "Curve", "learning_curve"]
