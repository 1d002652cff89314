"""How the common suite builds each method for its small problem, and the single exceptions from its
checks."""

from __future__ import annotations

from typing import Any

from metalearn.inner.rules import SGD, Adam
from metalearn.learned_optimizers import LSTM, Constant, LearnedSGD
from metalearn.nas import MLPReg

ADAM, RULE = Adam(lr=0.02), LSTM(hidden=5, layers=1)
# What makes a method learn the small problem in few steps; a method that is not here is built from
# its defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "maml": {"inner_steps": 2, "inner_lr": 0.3, "outer": ADAM},
    "anil": {"inner_steps": 3, "inner_lr": 0.3, "outer": ADAM},
    "boil": {"inner_steps": 2, "inner_lr": 0.3, "outer": ADAM},
    "meta_sgd": {"inner_steps": 2, "outer": ADAM},
    "reptile": {"inner_steps": 4, "inner_lr": 0.02, "inner_batch": 4, "outer": SGD(lr=0.5)},
    "proto_net": {"outer": ADAM},
    "proto_maml": {"inner_steps": 2, "inner_lr": 0.05, "outer": ADAM},
    "matching_net": {"scale": 10.0, "outer": ADAM},
    "r2d2": {"scale": 3.0, "outer": ADAM},
    "meta_curvature": {"inner_steps": 2, "inner_lr": 0.3, "outer": ADAM},
    "cavia": {"inner_steps": 2, "inner_lr": 1.0, "outer": ADAM, "bias": "layers.0.bias"},
    "maml_plus_plus": {"inner_steps": 2, "inner_lr": 0.3, "multi_steps": 20, "outer": ADAM},
    "imaml": {"inner_steps": 8, "inner_lr": 0.5, "strength": 0.5, "cg_steps": 3, "outer": ADAM},
    "imaml_hessian_free": {"newton_cg_steps": 3, "strength": 0.5, "cg_steps": 3, "outer": ADAM},
    "t_net": {"inner_steps": 2, "inner_lr": 0.3, "outer": ADAM},
    "alfa": {"inner_steps": 2, "inner_lr": 0.3, "outer": ADAM},
    "relation_net": {"hidden": 8, "outer": ADAM},
    "metaopt_net": {"strength": 1.0, "outer": ADAM},
    "metaopt_svm": {"scale": 7.0, "iterations": 20, "outer": ADAM},
    "meta_baseline": {"outer": ADAM},
    "pmf": {"inner_lr": 0.1, "outer": ADAM},
    "simple_shot": {"outer": ADAM},
    "logistic_regression": {"strength": 10.0, "outer": ADAM},
    "rfs": {"strength": 10.0, "copies": 0, "outer": ADAM},
    "rfs_distill": {"strength": 10.0, "copies": 0, "outer": ADAM},
    "linear_svm": {"strength": 10.0, "outer": ADAM},
    "knn": {"outer": ADAM},
    "conditional_neural_process": {"width": 16, "outer": ADAM},
    "attentive_neural_process": {"width": 16, "heads": 2, "outer": Adam(lr=0.01)},
    "transformer_neural_process": {"width": 16, "heads": 2, "layers": 2, "outer": Adam(lr=0.01)},
    "gpicl": {"width": 16, "heads": 2, "layers": 2, "outer": SGD(lr=0.5)},
    "snail": {"width": 8, "span": 4, "outer": Adam(lr=0.01)},
    "caml": {"width": 16, "heads": 2, "outer": ADAM},
    "prior_fitted": {"width": 16, "heads": 2, "layers": 2, "outer": ADAM},
    "scratch": {"inner_lr": 0.3},
    "fine_tune": {"inner_lr": 0.1, "outer": ADAM},
    "fine_tune_ensemble": {"inner_lr": 0.1, "outer": ADAM},
    "fine_tune_cross_validated": {"inner_lr": 0.1, "outer": ADAM},
    "linear_probe": {"outer": ADAM},
    "nearest_centroid": {"outer": ADAM},
    "baseline_plus_plus": {"outer": ADAM},
    "learn_optimizer": {
        "rule": LearnedSGD(lr=0.01),
        "unroll": 5,
        "horizon": Constant(steps=5),
        "outer_on": "query",
        "outer": Adam(lr=0.1),
    },
    "per_task_nas": {"space": MLPReg(), "candidates": 3, "search_steps": 3, "inner_lr": 0.1},
    "shared_nas": {
        "space": MLPReg(),
        "candidates": 2,
        "search_steps": 2,
        "search_tasks": 4,
        "score_tasks": 10,
    },
    "learned_optimizer": {"rule": RULE, "inner_steps": 3, "outer": Adam(lr=0.03)},
    "tuned_adam": {"inner_lr": 0.1},
    "meta_nas": {
        "space": MLPReg(),
        "inner_steps": 2,
        "inner_lr": 0.02,
        "arch_lr": 0.02,
        "warm_up": 0.0,
        "outer": SGD(lr=0.5),
    },
}
GRADIENT, LEARNS = "check_every_leaf_receives_gradient", "check_it_learns"
QUERIES = "check_queries_see_each_other_only_if_transductive"
INIT = "check_init_is_a_function_of_the_key"
NO_HEAD = "it has no use for the learner's head"
SLOW = "a network that is not built to compare examples takes more than 60 steps"
SLOWLY = (
    *("conditional_neural_process", "attentive_neural_process", "transformer_neural_process"),
    "gpicl",
)
# (method, check): why it does not apply, and which tests look at it instead.
EXEMPT = {
    ("rfs_distill", GRADIENT): "the start and the teacher of a generation stay as they are",
    ("proto_net", GRADIENT): "its meta is the learner's dict, and it has no use for the head",
    **{(name, GRADIENT): NO_HEAD for name in ("proto_maml", "matching_net", "r2d2")},
    **{(name, LEARNS): f"{SLOW}; tests/test_in_context.py looks at it" for name in SLOWLY},
    ("gradient_boosting", QUERIES): "it has no network that a policy could normalise; "
    "tests/test_transfer_tables.py looks at it",
    ("cavia", LEARNS): "a context before the first layer does not permute labels in 60 steps; "
    "tests/test_algorithms_closed_form.py looks at sinusoids",
    ("learn_optimizer", INIT): "a learned step size begins at its option, whatever the key; "
    "tests/test_learned_rules.py looks at networks",
    ("meta_nas", LEARNS): "a mixture of six kinds of perceptrons learns too slowly for 60 steps; "
    "tests/test_nas_meta.py looks at it",
}
