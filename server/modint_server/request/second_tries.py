"""How many requests may be asked a second time without what the guard added: a share of the traffic."""

SHARE = 1 / 20
AT_ONCE = 5.0  # second tries that a quiet gateway may make in a row


class SecondTries:
    """Every guarded request earns `SHARE` of a second try; at most `AT_ONCE` are kept."""

    def __init__(self) -> None:
        self._left = AT_ONCE

    def earn(self) -> None:
        """Counts a guarded request."""
        self._left = min(AT_ONCE, self._left + SHARE)

    def take(self) -> bool:
        """Whether a request may be asked once more; if so, that is spent."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
