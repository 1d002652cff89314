"""What every test run has: one thread, no network, the data beside the checkout where they are
there."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
# before torch, and for the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
# torch.compile reads a step twice where its state holds a float64 scalar (the count of steps), to
# learn that no float of Python depends on it. No graph that metalearn itself compiles has such one.
os.environ.setdefault("TENSORIFY_PYTHON_SCALARS", "0")
if not os.environ.get("METALEARN_DATA") and (ROOT.parent / "shared" / "data").is_dir():
    os.environ["METALEARN_DATA"] = str(ROOT.parent / "shared" / "data")

pytest.register_assert_rewrite("metalearn.testing")
import torch  # noqa: E402
from commandline import Commands, commands_in  # noqa: E402
from hypothesis import settings  # noqa: E402
from messages import Collector  # noqa: E402
from thorough import is_thorough, stale  # noqa: E402

from metalearn.config import plugins  # noqa: E402
from metalearn.logger import log  # noqa: E402

torch.set_num_threads(1)
# The same examples in every run, and no test depends on the clock.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.load_profile("steady")


class NetworkUsed(AssertionError):
    """A test asked for the network; not an OSError, so that no retry or fallback can hide it."""


def _local_only(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family != getattr(socket, "AF_UNIX", None):
            raise NetworkUsed(f"a test connects to {address!r}; tests run without a network")
        return connect(self, address)

    return guarded


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse every connection that leaves this machine's processes (sockets in the file system are
    fine)."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _local_only(getattr(socket.socket, name)))
        yield


@pytest.fixture(autouse=True)
def no_collectors() -> Iterator[None]:
    """Take the message collectors of a test off the logger."""
    yield
    for handler in log.handlers[:]:
        if isinstance(handler, Collector):
            log.removeHandler(handler)


@pytest.fixture(scope="module")
def metalearn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """The command line, in a folder of the module's own."""
    with commands_in(tmp_path_factory.mktemp("commands")) as commands:
        yield commands


@pytest.fixture
def tables() -> Iterator[None]:
    """Put the tables of components back after a test, and forget its plug-ins."""
    tables = plugins._tables()
    before = [dict(table) for table in tables]
    yield
    for table, values in zip(tables, before):
        table.clear()
        table.update(values)
    for module in plugins._modules.values():
        sys.modules.pop(module.__name__, None)
    plugins._modules.clear()


@pytest.fixture
def float64() -> Iterator[torch.dtype]:
    """Make float64 torch's default for one test: closed forms and gradients are compared in it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the prepared Omniglot; a test that needs it is skipped where it is not
    there."""
    folder = Path(os.environ.get("METALEARN_DATA") or "~/.cache/metalearn").expanduser()
    if not (folder / "omniglot28.npz").is_file():
        text = "omniglot28.npz is not prepared"
        pytest.skip(f"{text}: set METALEARN_DATA, or run `metalearn data prepare omniglot`")
    return folder


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the thorough tests. Slow tests come first, so that no worker is left with one at the
    end."""
    whole_files = not any("::" in argument for argument in config.args)
    if whole_files and (unmatched := stale(item.nodeid for item in items)):
        raise pytest.UsageError(f"tests/thorough.py: no test matches {unmatched}")
    for item in items:
        if is_thorough(item.nodeid):
            item.add_marker("thorough")
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say which tests `make test` leaves to another target."""
    if config.getoption("markexpr") == "not thorough":
        terminalreporter.line("not run: the longer variants listed in tests/thorough.py")
        terminalreporter.line("    run them with: make test-thorough")


def pytest_collection_finish() -> None:
    """What collecting the tests made stays: the search for cycles, which tracing starts often, need
    not read it again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu say why they are skipped where there is no CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
