"""LangChain's ChatOpenAI."""

from asked import CHAT, KEY, MODEL, URL, tell
from langchain_openai import ChatOpenAI

options = {"model": MODEL, "base_url": URL, "api_key": KEY, "max_retries": 0}
chat, responses = ChatOpenAI(**options), ChatOpenAI(**options, use_responses_api=True)
tell(
    chat=chat.invoke(CHAT).text,
    chat_stream="".join(piece.text for piece in chat.stream(CHAT)),
    responses=responses.invoke(CHAT).text,
    responses_stream="".join(piece.text for piece in responses.stream(CHAT)),
)
