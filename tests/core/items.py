"""Small hand-made items that several tests of the core look at."""

from PIL import Image

from modint_guard.data.item import Item

SIZE = (12, 8)
RED, BLUE, GREEN = (Image.new("RGB", SIZE, colour) for colour in ("red", "blue", "green"))

DIGIT = Item(
    id="digit-0",
    family="image-heavy",
    task="digit",
    form="word",
    question="What digit is shown?",
    choices=("3", "7"),
    answer="3",
    wrong="7",
    claim="the digit {}",
    image=RED,
    source="digit:12",
)
LETTERED = DIGIT.replace(id="digit-1", form="letter", choices=("5", "7", "3", "1"))
SUM = Item(
    id="sum-0",
    family="text-heavy",
    task="arithmetic",
    form="word",
    question="What is 1 plus 2?",
    choices=("3", "7"),
    answer="3",
    wrong="7",
    claim="the digit {}",
    agreeing=GREEN,
    contradicting=BLUE,
)
BOTH = Item(
    id="both-0",
    family="vqa",
    task="digit_plus",
    form="word",
    question="What is the digit shown plus one?",
    choices=("3", "7"),
    answer="3",
    wrong="7",
    image=RED,
)
