import pytest


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds of a run that trains for one; a module that looks at pictures says so by `PICTURES`."""
    if not getattr(request.module, "PICTURES", False):
        monkeypatch.setattr("reparam.reporting.plots.can_draw", lambda: False)
