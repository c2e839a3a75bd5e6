"""LangChain's ChatOpenAI, its structured output in a schema and by a tool among others."""

from asked import CHAT, KEY, MODEL, URL, tell
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Shape(BaseModel):
    """The shape in the picture."""

    colour: str


def as_object(method: str) -> str:
    """The colour, by a method of LangChain's."""
    return chat.with_structured_output(Shape, method=method).invoke(CHAT).colour


options = {"model": MODEL, "base_url": URL, "api_key": KEY, "max_retries": 0}
chat, responses = ChatOpenAI(**options), ChatOpenAI(**options, use_responses_api=True)
tell(
    chat=chat.invoke(CHAT).text,
    chat_stream="".join(piece.text for piece in chat.stream(CHAT)),
    chat_object=as_object("json_schema"),
    chat_tools=as_object("function_calling"),
    responses=responses.invoke(CHAT).text,
    responses_stream="".join(piece.text for piece in responses.stream(CHAT)),
)
