"""The thoughts that a model leaves in the text of its reply: where they end, and how a reply begins without.

Engines without a reasoning parser leave them there, some without the mark that begins them, because the
template has written it.
"""

from __future__ import annotations

import re

DEFAULT_EMPTY = "<think>\n\n</think>\n\n"
_NAME = (
    r"(?P<name>(?:\w{1,20}:)?(?:think|thinking|thought|thoughts|reasoning|reason|scratchpad|longcat_think))"
)
_PAIRS = {  # by the mark that ends them, in small letters: the mark that begins them
    "[/think]": "[THINK]",
    "◁/think▷": "◁think▷",
    "<|end_thinking|>": "<|START_THINKING|>",
    "<|end_of_thought|>": "<|begin_of_thought|>",
}
_BEGINS = re.compile(
    rf"\s*(?:<{_NAME}>|\[THINK\]|◁think▷|<\|(?:START_THINKING|begin_of_thought|think|channel)\|>|<\|channel>)",
    re.I,
)
_ENDS = re.compile(
    rf"</{_NAME}>|\[/THINK\]|◁/think▷|<\|(?:END_THINKING|end_of_thought)\|>"
    r"|<\|channel\|>final<\|message\|>|<channel\|>",
    re.I,
)
_BEGINS_IN_WORDS = re.compile(r"\s*Here(?:'s| is) my thought process:", re.I)
_ENDS_IN_WORDS = re.compile(r"Here(?:'s| is) my response:", re.I)


def behind_thoughts(text: str) -> str:
    """A text without the thoughts that it begins with; empty if it is nothing else."""
    end = _end(text)
    if end is not None:
        return text[end.end() :]
    return "" if _BEGINS.match(text) or _BEGINS_IN_WORDS.match(text) else text


def empty_thought(text: str) -> str | None:
    """How a reply of the same model begins that holds no thoughts; None if its marks have no such form.

    text: a reply with thoughts that have ended.
    """
    end = _end(text)
    if end is None:
        return None
    if name := end.groupdict().get("name"):
        return f"<{name}>\n\n</{name}>\n\n"
    begin = _PAIRS.get(end[0].lower())
    return begin and begin + end[0]


def _end(text: str) -> re.Match[str] | None:
    """The last mark that ends thoughts."""
    ends = _ENDS_IN_WORDS if _BEGINS_IN_WORDS.match(text) else _ENDS
    return max(ends.finditer(text), key=re.Match.end, default=None)
