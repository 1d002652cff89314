"""Packages of the distribution: the source tree, and `experiments/` as `metalearn.experiments`.

All else stands in pyproject.toml, which cannot combine a search for packages with a renamed one.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["metalearn", "metalearn.*"]), "metalearn.experiments"],
    package_dir={"metalearn.experiments": "experiments"},
)
