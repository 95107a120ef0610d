"""Storage that stumbles costs time, not the run: calls are tried again until it answers or patience ends.

Each client library has its own quick retries for single lost requests. This is the layer above them, for seconds and
minutes: it waits longer each time, says once that storage is away and once that it is back, and tells what passes
(a refused connection, 503) from what does not (a missing bucket, denied access).
"""

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from distuda.errors import RunFailed, UserError

PATIENCE = "DISTUDA_STORAGE_PATIENCE_S"
"""Environment variable: seconds for which storage may be away before a call is given up."""

DEFAULT_PATIENCE_S = 120.0

_QUIET_S = 2.0  # shorter outages are not worth a line
_LONGEST_PAUSE_S = 8.0
_LONGEST_TRY_S = 20.0  # of a call that failed, counted as outage: a long upload may have gone well for minutes before

_LOG = logging.getLogger("distuda.storage")

Result = TypeVar("Result")


class Unreachable(RunFailed, OSError):
    """Storage did not answer for as long as patience lasts; an `OSError`, so lost workers are started again."""


def persist(uri: str, call: Callable[[], Result]) -> Result:
    """The result of a call on remote storage, which may be made several times: it must not mind a half-done first try.

    Args:
        uri: what the call is about; outages are counted for its store (protocol and bucket).

    Raises:
        UserError: the storage refuses: no such bucket, no access, unusable credentials.
        Unreachable: it has failed for longer than `PATIENCE`.
        Exception: whatever else the call raised, at once.
    """
    store = "/".join(uri.split("/")[:3])
    first_s, pause_s = float("inf"), 0.5
    while True:
        begun_s = time.monotonic()
        try:
            result = call()
        except Unreachable:  # of a call within this one, which has waited already
            raise
        except Exception as error:
            if reason := refusal(uri, error):
                raise UserError(reason) from error
            if not may_pass(error):
                raise
            first_s = min(first_s, max(begun_s, time.monotonic() - _LONGEST_TRY_S))
            first_s = min(first_s, _OUTAGES.failed(store, first_s, error))
        else:
            _OUTAGES.answered(store)
            return result
        time.sleep(pause_s * random.uniform(0.5, 1))  # jitter: many workers must not come back at the same moment
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class _Outages:
    """Which stores are away, known to all threads of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since_s: dict[str, float] = {}
        self._told: set[str] = set()

    def failed(self, store: str, first_s: float, error: Exception) -> float:
        """Note a failure of a call that fails since ``first_s``; gives the outage's beginning or raises at its end.

        Patience is counted from the first call that failed, so that what is tried last, such as leaving a trace of
        the error, does not wait all over again.
        """
        now_s, patience_s = time.monotonic(), _patience_s()
        with self._lock:
            since_s = self._since_s.setdefault(store, first_s)
            away_s = now_s - min(since_s, first_s)
            tell = away_s >= min(_QUIET_S, patience_s) and store not in self._told
            if tell:
                self._told.add(store)
        if tell:
            _LOG.warning("%s does not answer (%s); trying again for %.0f s", store, _first_line(error), patience_s)
        if away_s > patience_s:
            raise Unreachable(
                f"{store} did not answer for {away_s:.0f} s ({_first_line(error)}). Check the network, the endpoint "
                f"and the storage service; {PATIENCE} sets how long to wait. A run goes on with resume=true"
            ) from error
        return since_s

    def answered(self, store: str) -> None:
        """Note that a call succeeded."""
        if store not in self._since_s:
            return
        with self._lock:
            since_s = self._since_s.pop(store, None)
            tell = store in self._told
            self._told.discard(store)
        if since_s is not None and tell:
            _LOG.warning("%s answers again after %.0f s", store, time.monotonic() - since_s)


_OUTAGES = _Outages()


def _patience_s() -> float:
    given = os.environ.get(PATIENCE) or DEFAULT_PATIENCE_S
    try:
        return max(0.0, float(given))
    except ValueError as error:
        raise UserError(f"{PATIENCE}={given!r} is no number of seconds. Set it to 120, for example.") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


_AWS = re.compile(r"AWS Error (?P<name>[A-Z_]+)(?: \(HTTP status (?P<status>\d+)\))?")
_PASSING = {
    "NETWORK_CONNECTION", "SLOW_DOWN", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "THROTTLING", "REQUEST_TIMEOUT",
}  # fmt: skip
_CERTIFICATE = re.compile(r"curlCode: (60|77|58|59)\b")
_FOR_GOOD = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_CLIENT_ERRORS = {"ClientConnectionError", "ClientPayloadError", "ServiceRequestError", "ServiceResponseError"}
"""Lost connections as aiohttp (gcsfs) and Azure's client (adlfs) call them."""


def may_pass(error: Exception) -> bool:
    """Whether the same call may succeed later: lost connections, timeouts, an overloaded or failing server."""
    if isinstance(error, _FOR_GOOD):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if aws := _AWS.search(str(error)):
        if _CERTIFICATE.search(str(error)):
            return False
        return aws["name"] in _PASSING or _is_passing_status(aws["status"])
    status = getattr(error, "status", None) or getattr(error, "status_code", None) or getattr(error, "code", None)
    return _is_passing_status(status) or any(kind.__name__ in _CLIENT_ERRORS for kind in type(error).__mro__)


def _is_passing_status(status: object) -> bool:
    text = str(status)
    return text.isdigit() and (int(text) in (408, 429) or 500 <= int(text) < 600)


_KEYS = (
    "Check the credentials that this process finds: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, "
    "or the machine's role"
)
_BUCKET = "Check its name, and for another service than AWS the endpoint in AWS_ENDPOINT_URL."
_REASONS = {
    "NO_SUCH_BUCKET": f"there is no such bucket. {_BUCKET}",
    "ACCESS_DENIED": f"access denied. {_KEYS}, and that they may list, read and write there.",
    "INVALID_ACCESS_KEY_ID": f"the access key is unknown. {_KEYS}.",
    "SIGNATURE_DOES_NOT_MATCH": f"the secret key is wrong. {_KEYS}.",
    "INVALID_CLIENT_TOKEN_ID": f"the session token is not valid. {_KEYS}.",
    "UNRECOGNIZED_CLIENT": f"the credentials are unknown. {_KEYS}.",
    "REQUEST_EXPIRED": "the request came too late or too early. Set this machine's clock.",
    "REQUEST_TIME_TOO_SKEWED": "this machine's clock is off. Set it.",
}


def refusal(uri: str, error: Exception) -> str | None:
    """Why S3 refuses and what to do, in the user's words; None for other errors."""
    aws, text = _AWS.search(str(error)), str(error)
    if aws is None:
        return None
    if _CERTIFICATE.search(text):
        reason: str | None = "the server's certificate is not trusted. Name its authority's file in AWS_CA_BUNDLE."
    elif "ExpiredToken" in text:
        reason = f"the session token has expired. {_KEYS}."
    elif aws["status"] in ("301", "307"):
        reason = "the bucket lies in another region. Name that one in AWS_REGION."
    else:
        reason = _REASONS.get(aws["name"])
    return reason and f"cannot use {uri!r}: {reason}"
