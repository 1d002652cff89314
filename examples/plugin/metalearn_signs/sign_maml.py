"""SignMAML (Fan et al. 2021, arXiv:2109.07497): a variant of a method, by one hook."""

from typing import Any, Literal

import metalearn as ml
from metalearn.tree import tree_map


class SignMAML(ml.algorithms.MAML):
    """MAML whose inner loop follows the sign of the gradient.

    phi_{s+1} = phi_s - inner_lr * sign(grad L_support(phi_s))
    """

    name: Literal["sign_maml"] = ml.option("sign_maml", "The method.")  # type: ignore[assignment]

    def inner_rule(self, spec: Any) -> ml.UpdateRule:
        """The rule of the inner loop, in training and on new tasks."""

        def update(grads: Any, state: Any, params: Any, loss: Any) -> tuple[Any, Any]:
            return tree_map(lambda g: -self.inner_lr * g.sign(), grads), state

        return ml.UpdateRule(lambda params: {}, update)
