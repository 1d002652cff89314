"""What is thrown at the program: edited documents, hostile values, archives and images that lie
about themselves."""

from __future__ import annotations

import copy
import io
from typing import Any

import yaml
from commandline import sinusoid
from hypothesis import strategies as st
from PIL import Image

SCRIPT = "<script>alert(1)</script>"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(12)
)
WORDS = [
    *("", "a", "../..", "/", "a/b", "\0", "-", "~", "nan", "1e-3", "${HOME}", "maml"),
    *(SCRIPT, "x" * 400, "é\u202e☃"),
]
WHOLE = [-1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**18, -(10**30), 10**200]
NUMBERS = [*WHOLE, 0.5, -0.1, 1e-320, 1e308, float("inf"), float("nan")]
keys = st.sampled_from(WORDS) | st.integers()
hostile = st.recursive(
    st.sampled_from([None, True, False, *NUMBERS, *WORDS])
    | st.integers(-9, 99)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
ODD = [
    *("", "[" * 3000, BOMB, "a: &a {b: *a}", "? [a, b]\n: 1", "1: 2\n1: 3", "--- 1\n--- 2"),
    *(f"run: {{meta_steps: {'9' * 5000}}}", "x: " + ":".join(["1"] * 5000), "\ufeffa: 1"),
    *("!!python/object/apply:os.system [exit]", "run: {<<: 3}", "method: {name: [maml]}"),
    "task: &t {source: sinusoid}\nmodel: *t",
]


def paths_of(data: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: Any = data.items() if isinstance(data, dict) else ()
    inner = enumerate(data) if isinstance(data, list) else inner
    return [prefix, *(path for key, value in inner for path in paths_of(value, (*prefix, key)))]


def put(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with the value at a path, or without what is there."""
    if not path:
        return value
    data = copy.deepcopy(data)
    inner = data
    for part in path[:-1]:
        inner = inner[part]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return data


@st.composite
def edited(draw: Any, base: Any) -> Any:
    """The data with some places changed, emptied or added."""
    data = base
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths_of(data)))
        extra = draw(st.sampled_from([(), ("new",), ("name",), ("source",)]))
        target = data
        for part in path:
            target = target[part]
        if extra and isinstance(target, dict):
            path = (*path, *extra)
            data = put(data, path, draw(hostile))
        else:
            data = put(data, path, draw(st.just(KeyError) | hostile) if path else draw(hostile))
    return data


def document(base: Any) -> st.SearchStrategy[str]:
    """A YAML text: edited data, a text with a piece replaced, a bomb."""
    text = yaml.safe_dump(base, sort_keys=False)
    whole = edited(base).map(lambda data: yaml.dump(data, allow_unicode=True))
    torn = st.tuples(st.integers(0, len(text)), st.integers(0, 30), st.text(max_size=12)).map(
        lambda cut: text[: cut[0]] + cut[2] + text[cut[0] + cut[1] :]
    )
    return st.one_of(whole, torn, st.sampled_from(ODD), st.text(max_size=40))


FILES = [
    *("config.yaml", "environment.json", "metrics.jsonl", "timing.jsonl", "result.json"),
    *("scores.npz", "episodes.npz", "checkpoint"),
]
harm = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.floats(0, 1)),
    st.tuples(st.just("put"), st.binary(max_size=40)),
    st.tuples(st.just("gone"), st.none()),
    st.tuples(st.just("folder"), st.none()),
    st.tuples(st.just("edit"), st.tuples(st.floats(0, 1), hostile)),
)
NAMES = [
    *("a.png", ".hidden", "a b.png", "<script>.png", "-rf.png", "é.png", "\n.png", "a.gif"),
    "x" * 120,
]


def pictures() -> dict[str, bytes]:
    """Files that a folder of images may hold: good ones of many kinds, and ones that lie about
    themselves."""
    found = {}
    forms = {"L": "PNG", "RGBA": "PNG", "P": "GIF", "1": "PNG", "I;16": "PNG", "CMYK": "JPEG"}
    for mode, form in {**forms, "F": "TIFF", "RGB": "BMP"}.items():
        buffer = io.BytesIO()
        Image.new(mode, (3, 5)).save(buffer, form)
        found[f"{mode} {form}"] = buffer.getvalue()
    huge = bytearray(found["L PNG"])
    # a header that promises a million by a million pixels
    huge[16:24] = (10**6).to_bytes(4, "big") * 2
    lies = {"huge": bytes(huge), "empty": b"", "text": b"no image", "svg": b"<svg/>"}
    return {**found, **lies, "cut": found["RGB BMP"][:-20]}


PICTURES = pictures()
KEYS = [
    *("method.inner_lr", "task.shots", "run.meta_steps", "evaluate.steps", "model.sizes"),
    *("method.name", "task.source", "run.seeds", "method.tune", "run.track.wandb.project"),
    *("experiment", "evaluate.task.shots", "x", "a.b.c", ""),
    *("methods.maml.inner_lr", "budget.trials", "run.validate.every", "method.start", "run.device"),
]
COMPARISON = {
    **sinusoid(method=None),
    "methods": [{"name": "maml"}, {"name": "scratch", "label": "alone"}],
}
SWEEP = {
    "program": "tiny.yaml",
    "method": "bayes",
    "metric": {"name": "valid/loss", "goal": "minimize"},
    "run_cap": 3,
    "early_terminate": {"type": "hyperband", "min_iter": 1},
    "parameters": {
        "method.inner_lr": {"min": 0.01, "max": 1.0},
        "method": {"parameters": {"inner_steps": {"values": [1, 2]}}},
        "task.shots": {"value": 3},
    },
}
value_text = st.one_of(
    hostile.map(lambda value: yaml.safe_dump(value, default_flow_style=True)), st.text(max_size=8)
)
words_of = st.lists(
    st.tuples(st.sampled_from(KEYS) | st.text("ab.=", max_size=4), value_text).map("=".join),
    max_size=3,
)
MEMBERS = [
    *("a.png", "../a.png", "/a.png", "a/../../b.png", "a\\..\\b.png", "C:\\a.png"),
    "Latin/character01/0001_01.png",
]
members = st.lists(
    st.tuples(
        st.sampled_from(MEMBERS) | st.text(max_size=10),
        st.binary(max_size=30) | st.just(PICTURES["1 PNG"]),
        st.integers(0, 4),
    ),
    max_size=4,
)
added = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from(NAMES), st.sampled_from(["link", "folder", *PICTURES])
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda one: one[:2],
)
