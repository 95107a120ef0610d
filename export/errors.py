"""The one failure of prediction that the user can mend; kept apart so that the runtime needs no Distuda."""


class PredictError(Exception):
    """A mistake the user can mend: the message names the value, the cause and the next action. Exit code 2."""
