"""How many requests of a key may be asked again without what the guard added: a share of its traffic."""

from collections import defaultdict

SHARE = 1 / 20
AT_ONCE = 5.0  # second tries that a quiet key may make in a row


class SecondTries:
    """Every guarded request earns its key `SHARE` of a second try; a key keeps at most `AT_ONCE`."""

    def __init__(self) -> None:
        self._left: defaultdict[str, float] = defaultdict(lambda: AT_ONCE)

    def earn(self, key_digest: str) -> None:
        """Counts a guarded request."""
        self._left[key_digest] = min(AT_ONCE, self._left[key_digest] + SHARE)

    def take(self, key_digest: str) -> bool:
        """Whether a request may be asked once more; if so, that is spent."""
        if self._left[key_digest] < 1.0:
            return False
        self._left[key_digest] -= 1.0
        return True
