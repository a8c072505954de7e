import logging

import pytest

from reparam.logs import hushed


def test_a_logger_is_hushed_below_a_level_and_speaks_again_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("somebody.elses")

    def fail() -> None:
        with hushed("somebody.elses", below=logging.ERROR):
            logger.warning("unheard")
            logger.error("heard")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  # it is its own
        fail()
    logger.warning("heard again")
    assert caplog.messages == ["heard", "heard again"]
