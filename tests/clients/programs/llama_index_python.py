"""LlamaIndex: its clients of servers that speak OpenAI's APIs."""

from asked import KEY, MODEL, PICTURE, QUESTION, URL, tell
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai_like import OpenAILike, OpenAILikeResponses

options = {"model": MODEL, "api_base": URL, "api_key": KEY, "max_retries": 0, "context_window": 2048}
asked = [ChatMessage(role="user", blocks=[ImageBlock(url=PICTURE), TextBlock(text=QUESTION)])]
chat = OpenAILike(**options, is_chat_model=True)
responses = OpenAILikeResponses(**options, is_chat_model=True)
tell(
    chat=chat.chat(asked).message.content,
    chat_stream="".join(piece.delta or "" for piece in chat.stream_chat(asked)),
    responses=responses.chat(asked).message.content,
    responses_stream="".join(piece.delta or "" for piece in responses.stream_chat(asked)),
)
