"""Loggers of other packages, kept from saying what helps nobody."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hushed(name: str, *, below: int) -> Iterator[None]:
    """While open, the logger `name` says nothing below a level of `logging`."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(below)
    try:
        yield
    finally:
        logger.setLevel(before)
