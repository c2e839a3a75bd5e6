"""What the check-up says of a model: three sentences from exact counts, and a table by kind and condition.

A sentence claims only what the 95 % intervals of its shares allow, and says "cannot be told" if the model
answers too few of the questions rightly without interference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from modint_guard.data.item import Family, Item
from modint_guard.data.perturb import CLEAN
from modint_guard.evaluation.checkup import says_lie, uses_text
from modint_guard.evaluation.guarantees import exact_interval
from modint_guard.evaluation.results import ResultRow
from modint_guard.evaluation.tables import LIES, Answer, clean_answers

FEWEST = 8  # answers, below which nothing is claimed
GUESSED = 1 / 6  # of picture questions, at most, are right by guessing: there are six shapes and six colours
MISLED = 0.05  # a lower bound above this: misled
UNMOVED = 0.2  # an upper bound below this: not misled

NOTES = (
    "The check-up's pictures are drawn, not photographed, and its texts are short: it says which kind of"
    " interference a model has, not how often your own questions meet it; for that name a data set.",
    "In brackets: the share and its exact 95 % interval (Clopper and Pearson), items taken as independent.",
    f"Misled: the interval of a share lies above {MISLED:.0%}; not misled: all of them lie below"
    f" {UNMOVED:.0%}. Nothing is said if fewer than {FEWEST} answers, or less than half of them, are right"
    f" without interference. A model sees if it is right more often than by guessing, {GUESSED:.0%} at most.",
)


@dataclass(frozen=True)
class Share:
    """`count` of `n` answers."""

    count: int
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """Exact, of 95 %."""
        return exact_interval(self.count, self.n)

    def __str__(self) -> str:
        """For a sentence: "12 of 30 (40 %, 23 to 59 %)"."""
        if not self.n:
            return "0 of 0"
        low, high = (round(100 * bound) for bound in self.interval)
        return f"{self.count} of {self.n} ({round(100 * self.count / self.n)} %, {low} to {high} %)"


def checkup_finding(model: str, answers: Sequence[Answer]) -> tuple[str, str, str]:
    """Three sentences: whether the model sees and uses a text that it needs, whether text beside a picture
    misleads it, whether a picture beside a text does.
    """
    return _able(model, answers), _by_text(answers), _by_picture(answers)


def kind_rows(model: str, answers: Sequence[Answer]) -> Iterator[ResultRow]:
    """A row for each kind of item and condition: how many are `right`, with an exact interval, and how many
    say what a lie `claims`, None without a lie.
    """
    groups: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.variant.item.task, answer.variant.perturbation), []).append(answer)
    for (kind, condition), group in groups.items():
        right = _right(group)
        low, high = right.interval
        yield {
            "model": model,
            "kind": kind,
            "condition": condition,
            "n": right.n,
            "right": right.count,
            "accuracy": right.count / right.n,
            "ci_low": low,
            "ci_high": high,
            "says_lie": _count(group, says_lie).count if condition in LIES else None,
        }


# -- the sentences --------------------------------------------------------------------------------------


def _able(model: str, answers: Sequence[Answer]) -> str:
    seen = _right(_under(answers, "image-heavy", CLEAN))
    needing = _under(answers, "vqa", CLEAN)
    used = _count(needing, uses_text)
    return (
        f"{model} {_sees(seen)}, and it {_uses(used)}: of questions about a picture alone it answers {seen}"
        f" rightly; of those that need a text beside the picture it answers {used} with something from the"
        f" text, and {_right(needing)} rightly."
    )


def _by_text(answers: Sequence[Answer]) -> str:
    clean = _under(answers, "image-heavy", CLEAN)
    lied = _count(_of_right(answers, clean, "misleading_description"), says_lie)
    wrong = _wrong(_of_right(answers, clean, "unrelated_facts"))
    if unknown := _unknown(clean, "text beside a picture misleads it", "questions about a picture alone"):
        return unknown
    return (
        f"Text beside a picture {_misleads(lied, wrong)}: of the answers that are right without a caption, a"
        f" lying caption turns {lied} into what it claims, and unrelated text makes {wrong} wrong."
    )


def _by_picture(answers: Sequence[Answer]) -> str:
    clean = _under(answers, "text-heavy", CLEAN)
    lied = _count(_of_right(answers, clean, "contradicting_image"), says_lie)
    wrong = _wrong(_of_right(answers, clean, "irrelevant_image"))
    if unknown := _unknown(clean, "a picture beside a text misleads it", "questions about a text alone"):
        return unknown
    return (
        f"A picture beside a text {_misleads(lied, wrong)}: of the answers that are right without one, a"
        f" contradicting picture turns {lied} into what it shows, and an irrelevant one makes {wrong} wrong."
    )


def _sees(seen: Share) -> str:
    if seen.n < FEWEST:
        return "was asked too little about pictures to tell whether it sees"
    if seen.interval[0] <= GUESSED:
        return "gives no sign of seeing the pictures"
    return "sees the pictures" if 2 * seen.count >= seen.n else "sees little of the pictures"


def _uses(used: Share) -> str:
    low, high = used.interval
    if used.n < FEWEST:
        return "was asked too little to tell whether it uses a text that it needs"
    if low > 0.5:
        return "uses a text that it needs"
    return "neglects a text that it needs" if high < 0.5 else "uses a text that it needs at times only"


def _unknown(clean: Sequence[Answer], what: str, asked: str) -> str | None:
    """Why it cannot be told; None if it can."""
    right = _right(clean)
    if right.count >= FEWEST and 2 * right.count >= right.n:
        return None
    return f"Whether {what} cannot be told: of {asked} it answers only {right} rightly."


def _misleads(*shares: Share) -> str:
    if any(share.interval[0] > MISLED for share in shares):
        return "misleads it"
    return "does not mislead it" if all(share.interval[1] < UNMOVED for share in shares) else "may mislead it"


# -- the counts -----------------------------------------------------------------------------------------


def _under(answers: Sequence[Answer], family: Family, condition: str) -> list[Answer]:
    return [a for a in answers if (a.variant.item.family, a.variant.perturbation) == (family, condition)]


def _of_right(answers: Sequence[Answer], clean: Sequence[Answer], condition: str) -> list[Answer]:
    """The answers under a condition to those items that are answered rightly when clean."""
    before = clean_answers(clean)
    return [
        a
        for a in answers
        if a.variant.perturbation == condition
        and (first := before.get(a.variant.item.id)) is not None
        and first.right
    ]


def _right(answers: Sequence[Answer]) -> Share:
    return Share(sum(a.right for a in answers), len(answers))


def _wrong(answers: Sequence[Answer]) -> Share:
    return Share(sum(not a.right for a in answers), len(answers))


def _count(answers: Sequence[Answer], holds: Callable[[Item, str], bool]) -> Share:
    return Share(sum(holds(a.variant.item, a.text) for a in answers), len(answers))
