"""POST /v1/responses: guarded like chat. The engine answers the request itself, and views are chat bodies."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial

import orjson
from starlette.responses import Response

from modint_guard.chat.body import parts_of
from modint_guard.chat.parts import in_one_form
from modint_guard.chat.reply import reply_of
from modint_guard.chat.responses import (
    ENDED,
    chat_of,
    completion_of,
    events_of_answer,
    usage_of_response,
    with_answer,
    with_logprobs,
    without_added,
)
from modint_guard.errors import EndpointError
from modint_guard.examination import Examination
from modint_guard.judge import skipped, unscored
from modint_guard.report import Report
from modint_guard.types import ANNOTATE, JSON, Reply
from modint_server.engine.upstream import RESPONSES, json_object
from modint_server.request import annotate
from modint_server.request.exchange import HeldWire, Record, Wire
from modint_server.request.intake import Incoming, read_unjudged, salted
from modint_server.request.passing import check_media_in, known_to_the_engine
from modint_server.request.pipeline import Pipeline, Withheld, delivered, is_told
from modint_server.request.sse import BrokenStreamError, chunk_of, data_of, events_of


@dataclass(frozen=True)
class Responses:
    """How such requests are answered, by the stages of `Pipeline`."""

    pipeline: Pipeline

    async def answer(self, raw: bytes, headers: Mapping[str, str], record: Record, wire: Wire) -> None:
        """One request, whole or streamed."""
        settings, attachment = self.pipeline.settings, self.pipeline.attachment
        incoming = salted(read_unjudged(raw, settings, attachment.only_base), settings)
        record.images = check_media_in(incoming.body, self.pipeline.guard.config.image_limits)
        record.stream = incoming.stream
        chat = chat_of(incoming.body)
        chat["messages"] = in_one_form(chat["messages"])
        images = sum(1 for part in parts_of(chat["messages"]) if "image_url" in part)
        debug = headers.get("x-modint-debug", "").lower() == "true"
        async with attachment.serving(incoming.body["model"]) as record.served:
            plan = await self.pipeline.plan(Incoming(chat, None, images), headers, forcing=False)
            request = incoming.without_modint()
            with known_to_the_engine(RESPONSES):
                if plan is None or plan.skip is not None or not plan.schedule.top_logprobs or not plan.views:
                    unasked = skipped(plan) if plan and plan.skip else None
                    record.report = unasked or (unscored(plan, "no_logprobs") if plan else None)
                    told = record.report is not None and is_told(record.report, incoming)
                    await self._plain(request, record, wire, told=told, debug=debug)
                    return
                examination = self.pipeline.examine(plan, record)
                try:
                    async with examination:
                        await self._guarded(examination, request, record, wire, debug)
                except Withheld as exc:
                    await wire.respond(annotate.withheld(exc.report, debug=debug))
                except EndpointError as exc:
                    if wire.streaming or not examination.refused_additions(exc):
                        raise
                    record.report = unscored(plan, "upstream_error")
                    await self._plain(request, record, wire, told=True, debug=debug)

    async def _guarded(
        self, examination: Examination, request: Incoming, record: Record, wire: Wire, debug: bool
    ) -> None:
        plan, policy = examination.plan, examination.policy
        body = orjson.dumps(with_logprobs(request.body, plan.schedule.top_logprobs))
        held = HeldWire(wire) if policy.action != ANNOTATE and policy.stream == "buffer" else None

        async def judged(response: JSON) -> JSON:
            """The response with its verdict, and another answer if the policy has one."""
            read = partial(_reply, response)
            with record.holding():
                report = await self.pipeline.report_on(examination, read, record)
            if request.stream:
                report = delivered(report, held)
            record.report = report
            shown: JSON = without_added(response, plan.token_options)
            if annotate.is_withheld(report, policy.abstain_as) and (not wire.streaming):
                raise Withheld(report)
            mitigation = report.mitigation
            if mitigation is not None and mitigation.answer is not None and not mitigation.correction:
                shown = with_answer(shown, mitigation.answer)
            return annotate.annotated(shown, report)

        if not request.stream:
            with record.waiting():
                data = await self.pipeline.upstream.post(RESPONSES, body, record.upstream_headers())
                shown = await judged(_noted(json_object(data), record))
            assert record.report is not None
            headers = annotate.headers_of(record.report, debug=debug)
            await wire.respond(Response(orjson.dumps(shown), 200, headers, "application/json"))
            return
        out = held or wire
        with record.waiting():
            async with self.pipeline.upstream.stream(RESPONSES, body, record.upstream_headers()) as pieces:
                async for event, document in _documents(pieces):
                    if not out.streaming:
                        await out.start()
                    if document is None or document.get("type") not in ENDED:
                        kept = without_added(document, plan.token_options)
                        await out.write(event if kept == document else _frame(kept))
                        continue
                    response = await judged(_noted(document["response"], record))
                    if held is not None and held.held:
                        await self._release(held, response, record, debug)
                    await out.write(_frame({**document, "response": response}))
        await out.end(b"")

    async def _release(self, held: HeldWire, response: JSON, record: Record, debug: bool) -> None:
        """Sends a held stream, or the events of another answer in its place."""
        assert record.report is not None
        mitigation = record.report.mitigation
        if mitigation is not None and mitigation.answer is not None:
            events = events_of_answer({name: value for name, value in response.items() if name != "modint"})
            held.replace(b"".join(map(_frame, events)))
        record.first_token_s = record.elapsed_s()
        await held.release(annotate.headers_of(record.report, debug=debug))

    async def _plain(self, request: Incoming, record: Record, wire: Wire, *, told: bool, debug: bool) -> None:
        """Request and answer as they are; with the report in the response if it is `told`."""
        report: Report | None = record.report
        headers = annotate.headers_of(report, debug=debug) if report else {}
        upstream, told_engine = self.pipeline.upstream, record.upstream_headers()
        if not request.stream:
            with record.waiting():
                data = await upstream.post(RESPONSES, request.bytes(), told_engine)
            response = _noted(json_object(data), record)
            if report is not None and told:
                data = orjson.dumps(annotate.annotated(response, report))
            await wire.respond(Response(data, 200, headers, "application/json"))
            return
        with record.waiting():
            async with upstream.stream(RESPONSES, request.bytes(), told_engine) as pieces:
                async for event, document in _documents(pieces):
                    if not wire.streaming:
                        await wire.start(headers)
                    if document is not None and document.get("type") in ENDED:
                        response = _noted(document["response"], record)
                        if report is not None and told:
                            event = _frame({**document, "response": annotate.annotated(response, report)})
                    await wire.write(event)
        await wire.end(b"")


async def _documents(pieces: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, JSON | None]]:
    """The events of a stream with what they hold. Raises BrokenStreamError if it ends before the response."""
    ended = False
    async for event in events_of(pieces):
        data = data_of(event)
        document = None if data is None or data == b"[DONE]" else chunk_of(data)
        kind = document.get("type") if document else None
        ended = ended or kind in (*ENDED, "response.failed", "error")
        yield event, document
    if not ended:
        raise BrokenStreamError("the engine ended the stream before its response was whole")


def _noted(response: JSON, record: Record) -> JSON:
    record.usage = usage_of_response(response)
    return response


def _reply(response: JSON) -> Reply:
    return reply_of(completion_of(response))


def _frame(event: JSON) -> bytes:
    return b"event: " + str(event.get("type")).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"
