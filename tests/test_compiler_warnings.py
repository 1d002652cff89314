"""The compiler's warnings about operators that it calls instead of compiling are not shown."""

from __future__ import annotations

import logging

import pytest
import torch

from metalearn.executors import executor, trace

LOGGERS = [logging.getLogger(f"torch._inductor.{name}") for name in ("ir", "standalone_compile")]


@pytest.mark.skipif(not executor.compiler_found(), reason="no C++ compiler was found")
def test_compiling_a_linear_solve_warns_of_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_LOGS", raising=False)
    for logger in LOGGERS:
        monkeypatch.setattr(logger, "handlers", [caplog.handler])
        monkeypatch.setattr(logger, "level", logging.WARNING)
    solve = trace.compile_function(torch.linalg.solve)
    left, right = torch.eye(3) + 1, torch.ones(3, 1)
    torch.testing.assert_close(solve(left, right), torch.linalg.solve(left, right))
    names = {logger.name for logger in LOGGERS}
    assert [record for record in caplog.records if record.name in names] == []
    assert [logger.level for logger in LOGGERS] == [logging.WARNING] * 2  # as before, for others
