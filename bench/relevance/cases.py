"""Plain cases in which it is settled what is context, as further material to fit the splitter on.

They are what the rules of `modint_guard.chat` were written for, mostly in English: captions, claims and
titles at every place, beside wishes, thanks and options that are none. Many are also asserted by
`tests/core/test_asides.py` and `test_views_keep_the_question.py`: there they hold by construction.
"""

from collections.abc import Iterator
from itertools import cycle, islice, product
from random import Random
from string import ascii_lowercase

from bench.relevance.requests import PICTURE, LabelledRequest
from modint_guard.chat.asides import asides_in
from modint_guard.types import JSON

AUTHOR = "cases"
Said = tuple[str, tuple[str, ...]]  # a text, and what of it is context
_IMAGE: JSON = {"type": "image_url", "image_url": {"url": PICTURE}}
_STATED_INSIDE = (
    "Given that the caption says a cat, what animal is it?",
    "Given the picture is of a cat, which animal is shown?",
    "Since the note says that it is blue, what colour is it?",
    "As the file name is cat.png, name the animal.",
    "Knowing that this is a dog, what animal do you see?",
    "Because the label reads STOP, what sign is it?",
    "The picture shows a cat, so what animal is it?",
    "The picture shows a cat, what animal is it?",
    "The caption says it is blue - what colour is it?",
    "The label reads 'cat'; which animal is it?",
    "According to the caption the ball is blue; what colour is it?",
    "I think it's a dog, but what animal is it?",
    "In the picture there is a dog, what colour is it?",
    "What animal (the caption says: a cat) is in the picture?",
    "What colour is the ball (caption: blue)?",
    "What is shown – the note says a cat – in the picture?",
    "What animal is it, considering that the caption says a cat?",
    "What colour is the ball given that it is blue?",
    "What colour is it, since the note says blue?",
    "What colour, as the caption says blue, is the ball?",
    "Seeing as the label says Merlot, what grape is it?",
    "With the caption being 'a dog', what animal is it?",
    "If the caption is right and it's a dog, what breed is it?",
    "The doctor noted a fracture, so which bone is broken?",
    "Assuming this is a golden retriever, how old is it?",
    "Which team, according to the caption Arsenal, is playing?",
    'It came as "ball" from the printer, and now: pic shows what?',
    "The sender says that it is a cat, so please say what you see.",
    'Under the title "Cat" this was printed; what is this?',
    "Since the title says Harbour, what place is shown?",
    "Given that the label reads salt, what is in the jar?",
    "The note says that it is a lemon, so what fruit is it?",
    "What is on the table, given that the caption says a vase?",
)
_STATED = (
    "It is a cat.",
    "It's a cat, right?",
    "It is a cat, isn't it?",
    "the caption says a cat",
    "(Caption: a cat)",
    "- the label says a cat",
    "Title: Cat",
    "File name: cat.png",
    "OCR: Cat",
    "Hint: is it a cat? It is.",
    "I believe that this is a cat.",
    "Somebody wrote “a cat” on it.",
    "Caption: a koala",
    "The ball is blue.",
    "Some text stands above the question.",
    "There is some text here that says nothing.",
    "The picture shows a blue ball.",
    'The sign says "Is it blue?"',
    "Caption: was it blue? It was.",
    "图片显示一个蓝色的球。",
    "La pelota es azul.",
    "Facts:\n- The ball is blue.\n- It rolls.",
    "<context>\nThe ball is blue.\n</context>",
    "It is round. Really?",
)
_NOT_CONTEXT = (
    "Just the name, please.",
    "Just the number.",
    "Only the colour.",
    "Be brief: one or two words.",
    "Yes or no.",
    "Keep it short.",
    "Thanks!",
    "Thank you very much.",
    "No markdown fences!",
    "No explanation, please.",
    "One word only.",
    "In one word, please.",
    "Short answer.",
    "In German, please.",
    "Number only.",
    "Hi there!",
    "I need this for my homework.",
    "You are a careful radiologist.",
    "Here is a photo I took yesterday.",
    "I'm blind.",
    "Look closely.",
    "Give it with two decimals.",
    "Translate it into English.",
    "Please reply in French.",
    "If you are not sure, say so.",
    "Format: one word",
    "Nur die Zahl, bitte.",
    "Danke!",
    "Answer with one word.",
    "Look at the picture.",
    "Be polite.",
    "Image 1:",
)
_QUESTIONS = (
    "What animal is in the picture?",
    "What colour is the ball?",
    "Name the colour.",
    "Look at the picture. Which colour has the ball?",
    "Question: What colour is it?",
    "¿De qué color es la pelota?",
    "球是什么颜色？",
    "ما لون الكرة؟",
    "Τι χρώμα είναι η μπάλα;",
    "Is it so? What colour is it then?",
    "What is it?",
    "The colour is",
    "what is this",
)
_STATES_NOTHING = (
    "What is the man, who is standing on the left, wearing?",
    "The man who is standing on the left, what is he wearing?",
    "As you can see in the picture, what is it?",
    "Since when is it so?",
    "Is it so (as they say)?",
    "Is it red? (yes/no)",
    "Is it a cat, a dog, or is it a bird?",
    "What is 3 (three) plus 2?",
    "Which is larger (in area)?",
    "In the picture, what is the man holding?",
    "How is the weather, and is the man happy?",
    "Why is the woman sad because of the dog?",
    "What is the total, which is shown at the bottom?",
    "Can you tell me what this is, given the context?",
    "What is the name of the city where it is, and what is its population?",
    "It is blue, isn't it?",
    "What is the value (see the table)?",
    "Is this, as a rule, a cat?",
    "Describe the image.",
    "What is 2 plus 3?",
)
_OPTIONS = (
    "",
    "\nA. red\nB. blue",
    "\n(A) red\n(B) blue",
    "\n- red\n- blue",
    "\nA、红\nB、蓝",
    "\nOptions:\nA. red\nB. blue",
)
_SYSTEM = ("", "You are brief.", "You are a helpful assistant.")
_PLACES = ("before", "line before", "after", "line after", "part", "part after", "turn", "none")
_DRAWN = 400  # of the questions with a statement at some place


_NAMES = (
    "Koala",
    "a koala on a tree",
    "Title: Koala",
    "OCR: Koala",
    "File name: koala.png",
    "Caption: a koala",
)
_TITLES = ("Title: Cactus", "The picture shows a cactus", "Cactus", "Caption: a cactus")
_PICK = "Pick the option that fits the picture.\nA. Cactus\nB. Tulip"


def case_requests() -> list[LabelledRequest]:
    """The cases, as requests with labels."""
    cases = [*_inside(), *_inside(), *_inside(), *_named(), *_named(), *_wishes(), *_stated(), *_nonsense()]
    return [_request(number, *case) for number, case in enumerate(cases)]


def _inside() -> Iterator[tuple[tuple[Said, ...], str, str]]:
    for text in _STATED_INSIDE:
        yield ((text, tuple(text[a:b] for a, b in asides_in(text))),), "", ""
    for text in _STATES_NOTHING:
        yield ((text, ()),), "", ""


def _named() -> Iterator[tuple[tuple[Said, ...], str, str]]:
    """Names and titles beside a question or behind it, in a part of their own, and before options."""
    for name in _NAMES:
        yield ((_QUESTIONS[0], ()), (name, (name,))), "", ""
        yield ((name, (name,)), (_QUESTIONS[0], ())), "", ""
    for title in _TITLES:
        yield ((f"{title}\n{_PICK}", (title,)),), "", ""
    for asked in ("What plant is it?", "The plant is"):
        yield ((f"{asked}\n{_PICK}", ()),), "", ""


def _wishes() -> Iterator[tuple[tuple[Said, ...], str, str]]:
    for wish, options in product(_NOT_CONTEXT, ("", "\nA. a cat\nB. a dog")):
        asked = f"{_QUESTIONS[0]}{options}"
        joined = [(f"{asked}\n{wish}",), (f"{wish} {asked}",), (f"{asked} {wish}",)]
        for texts in (*joined, (asked, wish), (wish, asked)):
            yield tuple((text, ()) for text in texts), "", ""


def _stated() -> Iterator[tuple[tuple[Said, ...], str, str]]:
    draw = Random(0)
    for said, asked in islice(cycle(product(_STATED, _QUESTIONS)), _DRAWN):
        text = f"{asked}{draw.choice(_OPTIONS)}"
        system, told = draw.choice(_SYSTEM), (said,)
        place = draw.choice(_PLACES)
        if place == "none":
            yield ((text, ()),), system, ""
        elif place == "turn":
            yield ((text, ()),), system, said
        elif place.startswith("part"):
            parts: tuple[Said, ...] = ((said, told), (text, ()))
            yield parts if place == "part" else parts[::-1], system, ""
        else:
            joint = "\n" if "line" in place or "\n" in text + said else " "
            both = f"{said}{joint}{text}" if "before" in place else f"{text}{joint}{said}"
            yield ((both, told),), system, ""


def _nonsense() -> Iterator[tuple[tuple[Said, ...], str, str]]:
    """Statements of words that do not exist: what counts is how they are put."""
    draw = Random(1)
    for _ in range(40):
        words = ["".join(draw.choices(ascii_lowercase, k=draw.randint(1, 7))) for _ in range(3)]
        counts = range(1, draw.randint(2, 4))
        told = " ".join(f"It seems that {' '.join(words[:count])}." for count in counts)
        yield ((f"{told}\nWhat colour is the ball?\nA. red\nB. blue", (told,)),), "", ""


def _request(number: int, texts: tuple[Said, ...], system: str, earlier: str) -> LabelledRequest:
    parts: list[JSON] = [{"type": "text", "text": text} for text, _ in texts]
    messages: list[JSON] = [{"role": "user", "content": [_IMAGE, *parts]}]
    if earlier:
        messages[:0] = [{"role": "user", "content": earlier}, {"role": "assistant", "content": "I see."}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    contexts = (*((earlier,) if earlier else ()), *(said for _, told in texts for said in told))
    return LabelledRequest(
        id=f"{AUTHOR}-{number}",
        author=AUTHOR,
        domain="cases",
        language="en",
        body={"model": "m", "messages": messages},
        relevant="image",
        contexts=contexts,
        question=texts[-1][0],
        placement="before" if contexts else "none",
    )
