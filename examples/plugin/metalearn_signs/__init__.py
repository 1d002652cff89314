"""SignMAML and rings of points, for metalearn."""

from metalearn_signs.rings import Rings
from metalearn_signs.sign_maml import SignMAML

__all__ = ["Rings", "SignMAML"]
