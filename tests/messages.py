"""What the package logs, as the command line would show it."""

from __future__ import annotations

import logging

from metalearn.logger import MessageFormatter, log


class Collector(logging.Handler):
    """Keeps every message as one line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(MessageFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def collect_messages() -> list[str]:
    """A list that grows with every message from now to the end of the test."""
    collector = Collector()
    log.addHandler(collector)
    log.setLevel(logging.INFO)
    return collector.lines
