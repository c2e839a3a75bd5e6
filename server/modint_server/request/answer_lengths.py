"""Whether answers are mostly longer ones, as far as was seen: then views wait for them.

A view of an answer of one word is asked for a word of its own, and is best sent with the request. A longer
answer is scored under the view once it is complete, and that word is not needed. Which of both an answer will
be is only seen afterwards, but a client that chats gets longer ones nearly always. Kept by client and model.
"""

from collections import defaultdict, deque

from modint_guard.report import Report
from modint_guard.types import TEACHER_FORCED, State

KEPT = 32  # answers of each client and model
FEWEST = 16  # answers before which nothing is expected
SHARE = 0.75  # of them


class AnswerLengths:
    """By client and model, which of the last answers that were to be judged were scored as a whole."""

    def __init__(self) -> None:
        self._scored: defaultdict[tuple[str, str], deque[bool]] = defaultdict(lambda: deque(maxlen=KEPT))

    def judged(self, key_digest: str, model: str, report: Report) -> None:
        """Adds an answer, unless nothing was to be judged. If views were late, they had better not wait."""
        if report.verdict.state is not State.SKIPPED:
            self._scored[key_digest, model].append(report.method == TEACHER_FORCED)

    def are_mostly_longer(self, key_digest: str, model: str) -> bool:
        """Whether the next answer will probably be scored as a whole, too."""
        scored = self._scored.get((key_digest, model), ())
        return len(scored) >= FEWEST and sum(scored) >= SHARE * len(scored)
