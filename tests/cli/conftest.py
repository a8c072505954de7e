import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from reparam_cli.main import run


@dataclass(frozen=True)
class Answer:
    """What one command line left behind."""

    code: int
    out: str
    err: str


RunCli = Callable[..., Answer]


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[RunCli]:
    for name in ("NO_COLOR", "FORCE_COLOR", "REPARAM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    logger = logging.getLogger("reparam")
    before = logger.handlers, logger.level, logger.propagate

    def answer(*argv: str) -> Answer:
        capsys.readouterr()
        code = run(argv)
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    yield answer
    logger.handlers, logger.level, logger.propagate = before
