"""The two kinds of failure a user can meet: theirs (exit code 2) and ours (exit code 1)."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend: the message names the value, the cause and the next action. Exit code 2."""


class RunFailed(Exception):
    """A run that broke for a reason of ours or the machines': one sentence, and where the trace lies. Exit code 1."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest allowed name, or nothing when none is close."""
    match = difflib.get_close_matches(str(given), list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


_PLAIN = {
    "Value error, ": "",
    "Input should be a valid tuple": "should be a list such as [a,b]",
    "Input should be": "should be",
    "List should": "should",
    " after validation, not 0": "",
    "a valid dictionary or instance of": "fields, those of",
}


def plainly(message: str) -> str:
    """A sentence of pydantic's in the words of someone who writes YAML."""
    for theirs, ours in _PLAIN.items():
        message = message.replace(theirs, ours)
    return message
