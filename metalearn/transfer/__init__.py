"""Transfer baselines of meta-learning, and training from scratch."""

from __future__ import annotations

from metalearn.component import MethodComponent
from metalearn.transfer.baseline_plus_plus import BaselinePlusPlus
from metalearn.transfer.fine_tune import FineTune
from metalearn.transfer.fine_tuning.cross_validated import FineTuneCrossValidated
from metalearn.transfer.fine_tuning.ensemble import FineTuneEnsemble
from metalearn.transfer.gradient_boosting import GradientBoosting
from metalearn.transfer.knn import KNN
from metalearn.transfer.linear_probe import LinearProbe
from metalearn.transfer.linear_svm import LinearSVM
from metalearn.transfer.logistic_regression import LogisticRegression
from metalearn.transfer.nearest_centroid import NearestCentroid
from metalearn.transfer.rfs import RFS
from metalearn.transfer.rfs_distill import RFSDistill
from metalearn.transfer.scratch import Scratch
from metalearn.transfer.simple_shot import SimpleShot

TRANSFER: dict[str, type[MethodComponent]] = {
    "scratch": Scratch,
    "fine_tune": FineTune,
    "fine_tune_ensemble": FineTuneEnsemble,
    "fine_tune_cross_validated": FineTuneCrossValidated,
    "linear_probe": LinearProbe,
    "nearest_centroid": NearestCentroid,
    "baseline_plus_plus": BaselinePlusPlus,
    "simple_shot": SimpleShot,
    "logistic_regression": LogisticRegression,
    "rfs": RFS,
    "rfs_distill": RFSDistill,
    "knn": KNN,
    "gradient_boosting": GradientBoosting,
    "linear_svm": LinearSVM,
}

__all__ = [
    "KNN",
    "RFS",
    "TRANSFER",
    "BaselinePlusPlus",
    "FineTune",
    "FineTuneCrossValidated",
    "FineTuneEnsemble",
    "GradientBoosting",
    "LinearProbe",
    "LinearSVM",
    "LogisticRegression",
    "NearestCentroid",
    "RFSDistill",
    "Scratch",
    "SimpleShot",
]
