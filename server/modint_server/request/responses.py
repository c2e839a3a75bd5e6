"""POST /v1/responses: guarded like chat. The engine answers the request itself, and views are chat bodies."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial

import orjson
from starlette.responses import Response

from modint_guard.chat.body import parts_of
from modint_guard.chat.images import ImageLimits
from modint_guard.chat.parts import in_one_form
from modint_guard.chat.reply import reply_of
from modint_guard.chat.responses import (
    ENDED,
    FAILED,
    chat_of,
    completion_of,
    events_of_answer,
    usage_of_response,
    with_answer,
    with_logprobs,
    without_added,
)
from modint_guard.chat.unread import dumps
from modint_guard.errors import EndpointError
from modint_guard.examination import Examination
from modint_guard.judge import skipped
from modint_guard.report import Report
from modint_guard.types import ANNOTATE, JSON, Plan, Reply, TokenOptions
from modint_server.boundary import boundary
from modint_server.engine.upstream import RESPONSES
from modint_server.request import annotate
from modint_server.request.exchange import HeldWire, Record, Wire
from modint_server.request.intake import DefaultModel, Incoming, keyed_by_gain
from modint_server.request.passing import known_to_the_engine, read_passed
from modint_server.request.pipeline import QUICK_BODY, Pipeline, Withheld, delivered, is_told
from modint_server.request.sse import BrokenStreamError, chunk_of, data_of, events_of
from modint_server.settings import Settings

_DELTAS = ("response.output_text.delta", "response.function_call_arguments.delta")


@dataclass(frozen=True)
class Responses:
    """How such requests are answered, by the stages of `Pipeline`."""

    pipeline: Pipeline

    async def answer(self, raw: bytes, headers: Mapping[str, str], record: Record, wire: Wire) -> None:
        """One request, whole or streamed."""
        pipeline = self.pipeline
        read = partial(read_request, limits=pipeline.guard.config.image_limits)
        incoming = await pipeline.read(read, raw, record)
        record.stream, record.images = incoming.stream, incoming.images
        asked = await pipeline.done(partial(as_chat, incoming), incoming.size, record)
        debug = headers.get("x-modint-debug", "").lower() == "true"
        async with pipeline.attachment.serving(incoming.body["model"]) as record.served:
            plan = await pipeline.plan(asked, headers, record)
            with known_to_the_engine(RESPONSES):
                if plan is None or plan.skip is not None:
                    record.report = skipped(plan) if plan else record.report
                    await self._plain(incoming, record, wire, debug)
                elif not plan.schedule.top_logprobs:
                    await self._unexamined(plan, "no_logprobs", incoming, record, wire, debug)
                elif reason := pipeline.reason_not_probed(plan, record):
                    await self._unexamined(plan, reason, incoming, record, wire, debug)
                else:
                    await self._guarded(plan, incoming, record, wire, debug)

    async def _guarded(self, plan: Plan, incoming: Incoming, record: Record, wire: Wire, debug: bool) -> None:
        """The request and its probes; unguarded, once, if the engine refuses what we added or breaks."""
        self.pipeline.second_tries.earn(record.key_digest)
        examination = self.pipeline.examine(plan, record)
        body = orjson.dumps(with_logprobs(incoming.without_modint().body, plan.schedule.top_logprobs))
        guarded = self._guarded_stream if incoming.stream else self._guarded_whole
        try:
            async with examination:
                await guarded(examination, body, record, wire, debug)
        except Withheld as exc:
            await wire.respond(annotate.withheld(exc.report, debug=debug))
        except EndpointError as exc:
            if wire.streaming or not self.pipeline.may_ask_again(examination, exc, record):
                raise
            await self._unexamined(plan, "upstream_error", incoming, record, wire, debug)

    async def _guarded_whole(
        self, examination: Examination, body: bytes, record: Record, wire: Wire, debug: bool
    ) -> None:
        pipeline = self.pipeline
        data, response = await pipeline.answered(RESPONSES, body, record)
        record.usage = usage_of_response(response)
        read, is_large = partial(_reply, response), len(data) > QUICK_BODY
        report = await pipeline.report_on(examination, read, record, is_large=is_large)
        record.report = report
        if annotate.is_withheld(report, examination.policy.abstain_as):
            raise Withheld(report)
        shown = partial(_served, response, report, examination)
        data = await pipeline.done_with_answer(partial(pipeline.written, shown, data), len(data), record)
        headers = annotate.headers_of(report, debug=debug)
        await wire.respond(Response(data, 200, headers, "application/json"))

    async def _guarded_stream(
        self, examination: Examination, body: bytes, record: Record, wire: Wire, debug: bool
    ) -> None:
        """Text at once, unless the policy holds it until it was judged and perhaps corrected."""
        wanted, policy = examination.plan.token_options, examination.policy
        held = HeldWire(wire) if policy.action != ANNOTATE and policy.stream == "buffer" else None
        out = held or wire
        with record.waiting():
            async with self.pipeline.upstream.stream(RESPONSES, body, record.upstream_headers()) as pieces:
                async for event, document in self._documents(pieces, record):
                    if not out.streaming:
                        await out.start()
                    response = _ended(document)
                    if response is None or record.report is not None:
                        shown = partial(self._shown, event, document, wanted)
                        await out.write(await self.pipeline.done_with_answer(shown, len(event), record))
                        continue
                    with record.holding():
                        read, is_large = partial(_reply, response), len(event) > QUICK_BODY
                        report = await self.pipeline.report_on(examination, read, record, is_large=is_large)
                    record.report = report = delivered(report, held)
                    if annotate.is_withheld(report, policy.abstain_as) and not wire.streaming:
                        raise Withheld(report)
                    served = partial(_served, response, report, examination)
                    last = partial(self._last, event, document or {}, served, replaces=_is_replaced(report))
                    event, instead = await self.pipeline.done_with_answer(last, len(event), record)
                    if held is not None and held.held:
                        if instead:
                            held.replace(instead)
                        record.first_token_s = record.elapsed_s()
                        await held.release(annotate.headers_of(report, debug=debug))
                    await out.write(event)
        await out.end(b"")

    async def _unexamined(
        self, plan: Plan, reason: str, incoming: Incoming, record: Record, wire: Wire, debug: bool
    ) -> None:
        """The request without probes, unless its policy serves no answer that could not be judged."""
        report = record.report = self.pipeline.without_verdict(plan, reason)
        if report.mitigation is not None:
            await wire.respond(annotate.withheld(report, debug=debug))
        else:
            await self._plain(incoming, record, wire, debug)

    async def _plain(self, incoming: Incoming, record: Record, wire: Wire, debug: bool) -> None:
        """Request and answer as they are. What was to be judged and what sent `modint` is told why not."""
        report: Report | None = record.report
        mark = report if report is not None and is_told(report, incoming) else None
        headers = annotate.headers_of(report, debug=debug) if report else {}
        upstream, told_engine = self.pipeline.upstream, record.upstream_headers()
        body = incoming.without_modint().bytes()
        if not incoming.stream:
            data, response = await self.pipeline.answered(RESPONSES, body, record)
            record.usage = usage_of_response(response)
            if mark is not None:
                marked = partial(annotate.annotated, response, mark)
                data = await self.pipeline.done_with_answer(
                    partial(self.pipeline.written, marked, data), len(data), record
                )
            await wire.respond(Response(data, 200, headers, "application/json"))
            return
        with record.waiting():
            async with upstream.stream(RESPONSES, body, told_engine) as pieces:
                async for event, document in self._documents(pieces, record):
                    if not wire.streaming:
                        await wire.start(headers)
                    if mark is not None and document and (ended := _ended(document)) is not None:
                        marked = partial(annotate.annotated, ended, mark)
                        last = partial(self._last, event, document, marked)
                        event, _ = await self.pipeline.done_with_answer(last, len(event), record)
                    await wire.write(event)
        await wire.end(b"")

    async def _documents(
        self, pieces: AsyncIterator[bytes], record: Record
    ) -> AsyncIterator[tuple[bytes, JSON | None]]:
        """The events of a stream with what they hold, noted in the record. Raises EndpointError, also if the
        stream ends before the response.
        """
        ended = False
        async for event in events_of(pieces):
            data = data_of(event)
            document = None
            if data is not None and data != b"[DONE]":
                document = await self.pipeline.done_with_answer(partial(chunk_of, data), len(data), record)
            kind = document.get("type") if document else None
            if document and kind is None and document.get("error"):
                raise self.pipeline.upstream.failed(
                    EndpointError("the engine reported an error in the stream", status=500, body=data or b"")
                )
            if kind in _DELTAS:
                record.token_seen()
            if (response := _ended(document)) is not None:
                record.usage = usage_of_response(response)
            ended = ended or kind in (*ENDED, *FAILED)
            yield event, document
        if not ended:
            raise BrokenStreamError("the engine ended the stream before its response was whole")

    def _last(
        self, event: bytes, document: JSON, served: Callable[[], JSON], *, replaces: bool = False
    ) -> tuple[bytes, bytes]:
        """The event that ends a stream, with the response that is served; and the events of this response if
        it goes out in place of what was streamed.
        """
        with boundary(self.pipeline.metrics, "annotating"):
            response = served()
            return _frame({**document, "response": response}), _frames_of(response) if replaces else b""
        return event, b""

    def _shown(self, event: bytes, document: JSON | None, wanted: TokenOptions) -> bytes:
        """An event without what only the guard asked for."""
        with boundary(self.pipeline.metrics, "annotating"):
            kept = without_added(document, wanted)
            return event if kept == document else _frame(kept)
        return event


def read_request(
    document: Incoming, settings: Settings, default_model: DefaultModel, *, limits: ImageLimits
) -> Incoming:
    """A request to /v1/responses, checked and cleaned. Raises RequestError or ImageError."""
    return keyed_by_gain(read_passed(document, settings, default_model, limits=limits), settings)


def as_chat(incoming: Incoming) -> Incoming:
    """The same request as a chat body."""
    chat = chat_of(incoming.body)
    chat["messages"] = in_one_form(chat["messages"])
    images = sum(1 for part in parts_of(chat["messages"]) if "image_url" in part)
    return Incoming(chat, None, images, incoming.size)


def _served(response: JSON, report: Report, examination: Examination) -> JSON:
    """The response with its verdict, and with another answer if the policy has one."""
    shown: JSON = without_added(response, examination.plan.token_options)
    if _is_replaced(report) and report.mitigation is not None and report.mitigation.answer is not None:
        shown = with_answer(shown, report.mitigation.answer)
    return annotate.annotated(shown, report)


def _is_replaced(report: Report) -> bool:
    """Whether another answer is served in place of the engine's."""
    mitigation = report.mitigation
    return mitigation is not None and mitigation.answer is not None and not mitigation.correction


def _frames_of(response: JSON) -> bytes:
    """The events of another answer, up to the one that completes it."""
    without_report = {name: value for name, value in response.items() if name != "modint"}
    return b"".join(map(_frame, events_of_answer(without_report)))


def _ended(document: JSON | None) -> JSON | None:
    """The whole response, if an event holds it."""
    response = document.get("response") if document and document.get("type") in ENDED else None
    return response if isinstance(response, dict) else None


def _reply(response: JSON) -> Reply:
    return reply_of(completion_of(response))


def _frame(event: JSON) -> bytes:
    return b"event: " + str(event.get("type")).encode() + b"\ndata: " + dumps(event) + b"\n\n"
