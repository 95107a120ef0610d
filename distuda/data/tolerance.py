"""What happens when a sample of a training stream cannot be used: stop at once, or pass over a small share."""

import json
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

from distuda import storage
from distuda.data.decode import SampleError
from distuda.errors import UserError


class Tolerance:
    """Counts the unusable samples of one data set and stops the run when they are too many.

    Args:
        num_samples: of the data set.
        max_share: share of them that may be unusable, 0..1; 0 stops at the first.
        list_uri: file that gets one line a bad sample (key, reason); None keeps no list. Lines that are there already,
            from before an interruption, count.
    """

    def __init__(self, num_samples: int = 0, max_share: float = 0.0, list_uri: str | None = None) -> None:
        self.num_samples, self.max_share, self.list_uri = num_samples, max_share, list_uri
        self._reasons: dict[str, str] = {}
        self._lock = Lock()
        if list_uri is not None and max_share and storage.exists(list_uri):
            self._reasons = read_list(list_uri)

    def __len__(self) -> int:
        """Different samples passed over so far."""
        return len(self._reasons)

    def attempt(self, decode: Callable[[], Any]) -> Any:
        """What ``decode`` gives, or None when its sample is unusable and may be passed over.

        Raises:
            SampleError: the sample is unusable and none may be.
            UserError: too many are unusable by now.
        """
        try:
            return decode()
        except SampleError as error:
            if not self.max_share:
                raise
            self._pass_over(error)
            return None

    def _pass_over(self, error: SampleError) -> None:
        with self._lock:  # decoding threads share this
            if error.key not in self._reasons:
                self._reasons[error.key] = error.reason
                if self.list_uri is not None:
                    rows = ({"key": key, "reason": reason} for key, reason in self._reasons.items())
                    storage.write_bytes(self.list_uri, "".join(json.dumps(row) + "\n" for row in rows).encode())
        require_few(self._reasons, self.num_samples, self.max_share, self.list_uri)


STRICT = Tolerance()
"""Stops at the first unusable sample."""


def read_list(uri: str) -> dict[str, str]:
    """What a list of unusable samples says: key -> reason."""
    lines = map(json.loads, storage.read_bytes(uri).decode().splitlines())
    return {line["key"]: line["reason"] for line in lines}


def require_few(reasons: Mapping[str, str], num_samples: int, max_share: float, listed: str | None) -> None:
    """Refuse more unusable samples than a share of the data set.

    Args:
        reasons: of the unusable samples, by key.
        num_samples: of the data set.
        max_share: share of them that may be unusable, 0..1.
        listed: where the list is, for the message.
    """
    if len(reasons) > max_share * num_samples:
        last = SampleError(*list(reasons.items())[-1])
        where = f" All are listed in {listed}." if listed else ""
        raise UserError(
            f"{len(reasons)} of {num_samples} samples cannot be used, more than max_bad_share={max_share}; the last: "
            f"{last}{where} Mend the data set, or raise max_bad_share."
        )
