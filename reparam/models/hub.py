"""Reaching the hub: what its errors mean in plain words, and no long wait for a network that is not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError

from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from reparam.errors import ReparamError
from reparam.models.spec import CONVERTED_PREFIX

_UNREACHABLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError, URLError)
_ABSENT = (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError)
_HTTP_CLIENTS = ("httpx", "httpcore", "requests", "urllib3")
_PATIENCE_S = 5.0


@contextmanager
def hub_access(what: str, *, error: type[ReparamError], advice: str) -> Iterator[None]:
    """As `in_plain_words`, and prepares the body for a hub that does not answer.

    Then the body runs in the hub's offline mode: files in the cache are used at once, and others fail at once instead
    of after five retries each (46 s measured for one missing model).
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_is_reachable()
    try:
        with in_plain_words(what, error=error, advice=advice):
            yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def in_plain_words(what: str, *, error: type[ReparamError], advice: str) -> Iterator[None]:
    """Turns whatever timm and the hub raise in the body into one `error` that names `what` and ends in `advice`."""
    try:
        yield
    except ReparamError:
        raise
    except Exception as cause:
        raise error(f"{what}: {_in_words(cause)} {advice}") from cause


def hub_is_reachable() -> bool:
    """Whether the hub answers one request, with any status."""
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S)
    except Exception:  # each HTTP client has its own tree of network errors
        return False
    return True


def _in_words(cause: Exception) -> str:
    if isinstance(cause, _UNREACHABLE) or type(cause).__module__.startswith(_HTTP_CLIENTS):
        return f"the hub at {constants.ENDPOINT} cannot be reached, and the file is not in the local cache."
    if isinstance(cause, _ABSENT):
        return f"the hub at {constants.ENDPOINT} has no such model or file, or does not let you see it."
    if f"Unknown model ({CONVERTED_PREFIX}" in str(cause):
        return "it was converted by reparam, so timm alone cannot build it. Load it with reparam.load."
    return f"{type(cause).__name__}: {str(cause).strip() or 'no details'}."
