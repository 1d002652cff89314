"""What is measured: learning curves, their statistics, and their cost; is handed methods, imports
none.
"""

from metalearn.evaluate.curves import Curve, learning_curve
from metalearn.evaluate.ledger import CostLedger

__all__ = ["CostLedger", "Curve", "learning_curve"]
