"""A stand-in for vLLM's server, to be started as the engine's command, with faults on demand.

    python stub_engine.py FAULT … --uds SOCKET --model … --served-model-name NAME --lora-modules NAME=PATH …

FAULT: none | SENTENCE (printed, then exit code 1) | silent (never listens) | deaf (ignores SIGTERM, has a
       child) | text-only (refuses images) | untemplated (refuses to chat) | same (the adapters answer as
       the base) | frail (dies when asked `DIE!`) | options (ends with an error that says how it was
       started)
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

from aiohttp import web


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("fault")
    parser.add_argument("--uds")
    parser.add_argument("--port", type=int)  # instead of the socket: an engine to attach to
    parser.add_argument("--served-model-name")
    parser.add_argument("--lora-modules", nargs="*", default=[])
    return parser.parse_known_args()[0]


def first_token(base: bool) -> dict[str, object]:
    probabilities = [("yes", -0.1), ("no", -2.5)] if base else [("yes", -2.5), ("no", -0.1)]
    top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in probabilities]
    return {"token": top[0]["token"], "logprob": top[0]["logprob"], "bytes": None, "top_logprobs": top}


def make(asked: argparse.Namespace) -> web.Application:
    base = asked.served_model_name
    adapters = [module.partition("=")[0] for module in asked.lora_modules]
    routes = web.RouteTableDef()

    def refusal(request: web.Request) -> web.Response | None:
        if request.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return None

    @routes.get("/health")
    async def health(request: web.Request) -> web.Response:
        return web.Response()

    @routes.get("/v1/models")
    async def models(request: web.Request) -> web.Response:
        cards = [{"id": base, "parent": None}, *({"id": name, "parent": base} for name in adapters)]
        return refusal(request) or web.json_response({"object": "list", "data": cards})

    @routes.post("/v1/chat/completions")
    async def chat(request: web.Request) -> web.Response:
        if (refused := refusal(request)) is not None:
            return refused
        body = await request.json()
        content = body["messages"][-1]["content"]
        if asked.fault == "frail" and "DIE!" in json.dumps(content):
            print("RuntimeError: the worker fell over", flush=True)
            os._exit(1)
        if asked.fault == "text-only" and not isinstance(content, str):
            error = {"message": f"{base} is not a multimodal model", "type": "BadRequestError", "code": 400}
            return web.json_response({"error": error}, status=400)
        if asked.fault == "untemplated":
            error = {"message": "you must provide a chat template", "type": "BadRequestError", "code": 400}
            return web.json_response({"error": error}, status=400)
        entry = first_token(body["model"] == base or asked.fault == "same")
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": entry["token"]},
            "logprobs": {"content": [entry]},
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        return web.json_response({**answer, "choices": [choice], "usage": usage})

    app = web.Application()
    app.add_routes(routes)
    return app


def main() -> None:
    asked = options()
    print("INFO 11-22 16:40:01 [loader.py:5] Loading weights", flush=True)
    if asked.fault == "silent":
        time.sleep(600)
    if asked.fault == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "600"])
        print(f"child {child.pid}", flush=True)
    if asked.fault == "options":
        sys.exit(f"RuntimeError: started with {' '.join(sys.argv[2:])}")
    if " " in asked.fault:
        sys.exit(asked.fault)
    where = {"host": "127.0.0.1", "port": asked.port} if asked.port else {"path": asked.uds}
    web.run_app(make(asked), print=lambda text: None, handle_signals=asked.fault != "deaf", **where)


if __name__ == "__main__":
    main()
