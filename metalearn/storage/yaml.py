"""YAML as data: no tags that make objects, no text that unfolds into more than it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from metalearn.errors import ConfigError

BYTES = 4 << 20  # no experiment is a hundredth of this
NODES = 1_000_000  # with every alias written out
DEPTH = 100
NUMBER = 100  # characters of a number


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with ceilings; what is beyond them is a YAMLError like any other."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > DEPTH:
            raise yaml.YAMLError(f"nested deeper than {DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_number(self, node: Any) -> Any:
        """A whole number or a float; one of thousands of digits, or in base 60 of as many places,
        is refused.
        """
        if len(node.value) > NUMBER:
            raise yaml.YAMLError(f"a number of {len(node.value)} characters")
        whole = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def _written_out(node: Any, known: dict[int, int | None]) -> int:
    """How many nodes there are once every alias stands for its copy; an alias inside its own anchor
    is refused.
    """
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise yaml.YAMLError("an alias stands inside its own anchor")
        return size
    known[id(node)] = None
    inside: list[Any] = []
    if isinstance(node, yaml.SequenceNode):
        inside = list(node.value)
    elif isinstance(node, yaml.MappingNode):
        inside = [part for pair in node.value for part in pair]
    size = 1 + sum(_written_out(part, known) for part in inside)
    if size > NODES:
        raise yaml.YAMLError(f"its aliases unfold into more than {NODES} values")
    known[id(node)] = size
    return size


def parse_yaml(text: str) -> Any:
    """The data of a YAML text; raises ValueError with a sentence on one line."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _written_out(node, {})
        return loader.construct_document(node)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
        OverflowError,
        TypeError,
    ) as error:  # 2001-99-99, a list as key
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: Path) -> Any:
    """The data of a YAML file; ConfigError that names the file."""
    try:
        if path.stat().st_size > BYTES:
            raise ValueError(f"it has more than {BYTES >> 20} MiB")
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(
            (str(path), f"cannot be read as YAML: {' '.join(str(error).split())}")
        ) from error
