"""YAML as data: PyYAML's safe loader, without duplicate keys, and with limits.

The limits are on size, on numbers and on the expansion of aliases."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from metalearn.errors import ConfigError

BYTES = 4 << 20  # no experiment is a hundredth of this
VALUES = 1_000_000  # with every alias expanded
MERGE = "tag:yaml.org,2002:merge"
NUMBER = 100  # characters of a number: base 60 (1:30:00) has no other limit
OCTAL = re.compile(r"[-+]?0[0-9]")


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)  # merge keys are not expanded here
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    where = f"lines {lines[name]} and {line}"
                    raise yaml.YAMLError(f"the key {key.value!r} occurs twice ({where}): keep one")
                lines[name] = line
        return node

    def construct_document(self, node: Any) -> Any:
        if _expanded_size(node, {}) > VALUES:  # before it is built: merge keys are expanded, too
            raise yaml.YAMLError(f"its aliases expand to more than {VALUES} values")
        return super().construct_document(node)

    def construct_number(self, node: Any) -> Any:
        if len(node.value) > NUMBER:
            raise yaml.YAMLError(f"a number of {len(node.value)} characters")
        whole = node.tag == "tag:yaml.org,2002:int"
        number = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
        base = 60 if ":" in node.value else 8 if whole and OCTAL.match(node.value) else 10
        if base != 10:
            text = f"YAML reads {node.value} as {number}, in base {base}"
            raise yaml.YAMLError(f"{text}: write {number}, or quote it if it is a text")
        return number


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def _expanded_size(node: Any, sizes: dict[int, float]) -> float:
    """Return the number of values with every alias expanded; infinite if one contains itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        mapping = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if mapping else node.value
        sizes[id(node)] = 1 + sum(_expanded_size(part, sizes) for part in parts)
    return sizes[id(node)]


def is_printable(text: str) -> bool:
    """Return whether YAML accepts every character of a text: no NUL, no surrogates."""
    return yaml.reader.Reader.NON_PRINTABLE.search(text) is None


def parse_yaml(text: str) -> Any:
    """Return the data of a YAML text. Raises ValueError with a sentence on one line."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:
        # ValueError: 2001-99-99; TypeError: a list as a key
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def read_yaml(path: Path) -> Any:
    """Return the data of a YAML file. Raises ConfigError that names the file."""
    try:
        if path.stat().st_size > BYTES:
            raise ValueError(f"it is larger than {BYTES >> 20} MiB")
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        text = f"cannot be read as YAML: {' '.join(str(error).split())}"
        raise ConfigError((str(path), text)) from error
