"""What a hub's answers mean, and that an absent hub is not waited for."""

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError

from reparam.errors import ModelError, WeightsError
from reparam.models import hub
from reparam.models.hub import hub_access, hub_is_reachable, in_plain_words

REAL_PROBE = hub_is_reachable  # the fixture `no_network` stands in for it in the module


def test_an_absent_hub_means_offline_mode_for_the_body_only(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_access("weights", error=WeightsError, advice="Wait."):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_present_hub_is_used(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("reparam.models.hub.hub_is_reachable", lambda: True)
    with hub_access("weights", error=WeightsError, advice="Wait."):
        assert not constants.HF_HUB_OFFLINE


def test_a_user_who_is_offline_stays_so(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub_access("weights", error=WeightsError, advice="Wait."):
        pass
    assert constants.HF_HUB_OFFLINE


def test_a_name_that_the_hub_does_not_know_is_told_from_a_broken_line():
    with (
        pytest.raises(WeightsError, match=r"^weights: the hub at .* has no such model or file"),
        in_plain_words("weights", error=WeightsError, advice="Wait."),
    ):
        raise HFValidationError("Repo id must be in the form")


def test_our_own_errors_pass_through():
    with pytest.raises(ModelError, match=r"^mine$"), in_plain_words("weights", error=WeightsError, advice="Wait."):
        raise ModelError("mine")


def test_other_errors_keep_their_words_and_cause():
    with (
        pytest.raises(WeightsError, match=r"^weights: RuntimeError: size mismatch\. Wait\.$") as caught,
        in_plain_words("weights", error=WeightsError, advice="Wait."),
    ):
        raise RuntimeError("size mismatch")
    assert isinstance(caught.value.__cause__, RuntimeError)


class Session:
    def __init__(self, answer: Exception | None) -> None:
        self.answer = answer

    def head(self, url: str, *, timeout: float) -> None:
        assert url == constants.ENDPOINT
        assert timeout <= 5
        if self.answer is not None:
            raise self.answer


@pytest.mark.parametrize(("answer", "reachable"), [(None, True), (OSError("Name or service not known"), False)])
def test_the_hub_is_reachable_when_it_answers_at_all(monkeypatch, answer, reachable):
    monkeypatch.setattr(hub, "get_session", lambda: Session(answer))
    assert REAL_PROBE() is reachable
