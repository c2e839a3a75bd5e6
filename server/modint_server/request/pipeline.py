"""One chat request, stage by stage: parse, relevance, forward and probe together, score, policy, annotate.

A request that is probed is an `Examination`; whole answers, streams and the check are short users of it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import orjson
from starlette.responses import Response

from modint_guard.chat.body import check_image_headers
from modint_guard.chat.options import parse_options
from modint_guard.chat.reply import StreamReply, answers_of, reply_of
from modint_guard.chat.unread import dumps
from modint_guard.errors import EndpointError, RequestError
from modint_guard.examination import QUICK_TOKENS, Examination
from modint_guard.guard import Guard
from modint_guard.judge import skipped, skipped_unread, unjudged, unscored
from modint_guard.judging.divergence import probabilities, tail
from modint_guard.mitigation.ladder import fail_closed, served
from modint_guard.mitigation.policy import Policy
from modint_guard.plan import policy_of
from modint_guard.report import Report, Verdict, first_concern, with_reports
from modint_guard.types import ANNOTATE, JSON, NOOP, Complete, ModintOptions, Plan, Reply, State
from modint_server.boundary import boundary
from modint_server.engine.attachment import Attachment
from modint_server.engine.noise import NoiseFloor
from modint_server.engine.upstream import CHAT, COMPLETIONS, Upstream, json_object
from modint_server.metrics import Metrics
from modint_server.request import annotate
from modint_server.request.answer_lengths import AnswerLengths
from modint_server.request.budgets import TokenBudget
from modint_server.request.exchange import HeldWire, Record, Wire
from modint_server.request.intake import DefaultModel, Incoming, read_chat, read_completion, read_document
from modint_server.request.keys import Keys
from modint_server.request.measuring import Measuring
from modint_server.request.pictures import Pictures
from modint_server.request.places import Places
from modint_server.request.sampling import Sample
from modint_server.request.second_tries import SecondTries
from modint_server.request.sse import (
    DONE,
    BrokenStreamError,
    Choices,
    Splitter,
    chunk_of,
    data_of,
    events_of,
    frame,
    is_done,
)
from modint_server.request.workers import Workers
from modint_server.settings import Settings

QUICK_BODY = 64 * 1024  # bytes that are parsed in less than a millisecond
QUICK_TEXT = 8 * 1024  # bytes of a body without images that is split in a few milliseconds
MAX_ASKED = 3  # a request that asks for more probes of its own is not burdened with ours
Reader = Callable[[Incoming, Settings, DefaultModel], Incoming]
Judge = Callable[[list[JSON]], Awaitable[list[JSON]]]  # the last chunks of all answers, with verdicts
T = TypeVar("T")


class Withheld(Exception):  # noqa: N818 - an answer that the policy does not give, no error
    """Ends a held stream: the envelope goes out in its place."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report = report


@dataclass(frozen=True)
class Pipeline:
    """The stages of a request and what they stand on; holds no state of a request."""

    guard: Guard
    upstream: Upstream
    attachment: Attachment
    metrics: Metrics
    settings: Settings
    noise: NoiseFloor
    lengths: AnswerLengths
    budget: TokenBudget
    second_tries: SecondTries
    keys: Keys
    measuring: Measuring
    places: Places
    probe_slots: Places
    rung_slots: Places
    workers: Workers
    pictures: Pictures
    sample: Sample

    async def chat(self, raw: bytes, headers: Mapping[str, str], record: Record, wire: Wire) -> None:
        """POST /v1/chat/completions."""
        incoming = self._counted(await self.read(read_chat, raw, record), record)
        record.stream, record.images = incoming.stream, incoming.images
        debug = headers.get("x-modint-debug", "").lower() == "true"
        async with self.attachment.serving(incoming.body["model"]) as record.served:
            plan = await self.plan(incoming, headers, record)
            if plan is None or plan.skip is not None:
                record.report = skipped(plan) if plan else record.report
                await self._plain(CHAT, incoming, record, wire, debug)
            elif reason := self.reason_not_probed(plan, record):
                await self._unexamined(plan, reason, incoming, record, wire, debug)
            else:
                await self.guarded(plan, incoming, record, wire, debug)

    async def completion(self, raw: bytes, headers: Mapping[str, str], record: Record, wire: Wire) -> None:
        """POST /v1/completions: no images, so nothing to examine."""
        incoming = self._counted(await self.read(read_completion, raw, record), record)
        record.stream = incoming.stream
        async with self.attachment.serving(incoming.body["model"]) as record.served:
            await self._plain(COMPLETIONS, incoming, record, wire, debug=False)

    async def check(self, raw: bytes, headers: Mapping[str, str], record: Record, wire: Wire) -> None:
        """POST /v1/guard/check: {model, messages, answer, modint?} → {modint}; two tokens a call at most."""
        incoming = await self.read(read_chat, raw, record)
        answer = _answer_of(incoming.body)
        record.images = incoming.images
        asked = {
            key: value
            for key, value in incoming.body.items()
            if key not in ("answer", "stream", "stream_options")
        }
        async with self.attachment.serving(asked["model"]) as record.served:
            plan = await self.plan(replace(incoming, body=asked), headers, record, always=True)
            assert plan is not None
            if plan.options.action not in (None, ANNOTATE):
                raise RequestError(
                    "an answer given elsewhere is judged, not corrected: leave `modint.action` out",
                    param="modint.action",
                    code="invalid_value",
                )
            report = record.report = await self._checked(plan, answer, record)
            data = orjson.dumps({"modint": report.to_json()})
            await wire.respond(_json(data, annotate.headers_of(report)))

    # The stages.

    async def plan(
        self,
        incoming: Incoming,
        headers: Mapping[str, str],
        record: Record,
        *,
        always: bool = False,
    ) -> Plan | None:
        """What will be probed; None where the request does not ask for the guard, and that is off or did not
        draw it. `record.report` then says why.
        """
        field = incoming.body.get("modint")
        options = parse_options(field, headers)
        asks = "x-modint-mode" in headers or (isinstance(field, dict) and "mode" in field)
        is_on = self.settings.guard == "on"
        if not (asks or always or (is_on and (not incoming.images or self.sample.takes(record.trace)))):
            check_image_headers(incoming.body, self.guard.config.image_limits)
            record.report = skipped_unread("sampled_out") if is_on else None
            return None
        if always and options.action is None:
            options = replace(options, action=ANNOTATE)  # a verdict alone is corrected by no policy
        model = incoming.body["model"]
        if incoming.images and options.mode == "on" and not always:
            record.measures_noise = self.noise.is_due(record.key_digest, model)
        if record.measures_noise:
            options = replace(options, probes=(*(options.probes or ()), *_absent(NOOP, options)))
        top = self.attachment.top_logprobs
        work = partial(
            self.guard.plan,
            incoming.body,
            options,
            max_top_logprobs=top,
            forcing=self.attachment.teacher_forcing,
            last_rows=self.attachment.last_rows,
            noise=self.noise.of(record.key_digest, model),
            expects_longer=self.lengths.are_mostly_longer(record.key_digest, model),
        )
        is_quick = not incoming.images and incoming.size <= QUICK_TEXT
        return work() if is_quick else await self.workers.run(record.key_digest, work)

    async def read(self, read: Reader, raw: bytes, record: Record) -> Incoming:
        """The request, its pictures fetched where it may name them by address; a large one is read in a
        thread.
        """
        parse: Callable[[], Incoming] = partial(read_document, raw, self.settings)
        if self.pictures.are_fetched:
            document = await self.pictures.fetched(await self.done(parse, len(raw), record))
            parse = lambda: document  # noqa: E731 - what was parsed already
        incoming = await self.done(
            lambda: read(parse(), self.settings, self.attachment.only_base), len(raw), record
        )
        record.client.check_model(incoming.body["model"])
        is_shared = self.settings.cache_by_key == "auto" and self.keys.are_several
        return incoming.salted(record.key_digest) if is_shared else incoming

    def _counted(self, incoming: Incoming, record: Record) -> Incoming:
        """The request, asked for its tokens if these are limited and a stream would not tell them."""
        wanted = incoming.body.get("stream_options")
        tells = isinstance(wanted, dict) and wanted.get("include_usage") is True
        if not record.client.tokens_per_minute or not incoming.stream or tells:
            return incoming
        record.hides_usage = True
        return incoming.with_usage()

    async def done(self, work: Callable[[], T], size: int, record: Record) -> T:
        """The result of work on a body of so many bytes; on a large one it is done in a thread."""
        return work() if size <= QUICK_BODY else await self.workers.run(record.key_digest, work)

    async def done_with_answer(self, work: Callable[[], T], size: int, record: Record) -> T:
        """The same for what the engine answered: done in a further thread if those are busy for too long, for
        no answer may be lost to that.
        """
        try:
            return await self.done(work, size, record)
        except RequestError:
            return await asyncio.to_thread(work)

    async def guarded(self, plan: Plan, incoming: Incoming, record: Record, wire: Wire, debug: bool) -> None:
        """The request and its probes; unguarded, once, if the engine refuses what we added or breaks."""
        self.second_tries.earn(record.key_digest)
        examination = self.examine(plan, record)
        guarded = self._guarded_stream if incoming.stream else self._guarded_whole
        try:
            async with examination:
                await guarded(examination, record, wire, debug)
        except Withheld as exc:
            await wire.respond(annotate.withheld(exc.report, debug=debug))
        except EndpointError as exc:
            if wire.streaming or not self.may_ask_again(examination, exc, record):
                raise
            await self._unexamined(plan, "upstream_error", incoming, record, wire, debug)

    async def _unexamined(
        self, plan: Plan, reason: str, incoming: Incoming, record: Record, wire: Wire, debug: bool
    ) -> None:
        """The request without probes, unless its policy serves no answer that could not be judged."""
        report = record.report = self.without_verdict(plan, reason)
        if report.mitigation is not None:
            await wire.respond(annotate.withheld(report, debug=debug))
        else:
            await self._plain(CHAT, incoming, record, wire, debug)

    def reason_not_probed(self, plan: Plan, record: Record) -> str | None:
        """Why a request that could be judged is not probed; None if it is."""
        if not plan.views:
            return "no_logprobs"
        return "overload" if record.is_busy else None

    def without_verdict(self, plan: Plan, reason: str) -> Report:
        """The report of a request that is not probed. It says what goes out in place of the answer
        (`mitigation`) if the policy serves none that could not be judged.
        """
        policy = policy_of(plan.chat, plan.options, self.guard.config)
        report = (
            unjudged(plan, Verdict(State.SKIPPED, reason=reason))
            if reason == "overload"
            else unscored(plan, reason)
        )
        return fail_closed(report, policy)

    def may_ask_again(self, examination: Examination, exc: EndpointError, record: Record) -> bool:
        """A refusal costs the engine nothing; what broke it may do so again, so that is asked of few."""
        if examination.refused_additions(exc):
            return True
        broke = examination.failed_on_additions(exc) and not isinstance(exc, BrokenStreamError)
        return broke and self.second_tries.take(record.key_digest)

    async def _guarded_whole(self, examination: Examination, record: Record, wire: Wire, debug: bool) -> None:
        data, completion = await self.answered(CHAT, orjson.dumps(examination.body), record)
        record.usage = completion.get("usage")
        read = partial(answers_of, completion, examination.plan.choices)
        reports = await self.reports_on(examination, read, record, is_large=len(data) > QUICK_BODY)
        report = _noted(reports, record)
        came = reports[: len(annotate.choices_of(completion))] or reports
        if _all_withheld(came, examination.policy):
            raise Withheld(report)

        def shown() -> bytes:
            document = served(examination.strip(completion), reports)
            return self.written(lambda: with_reports(document, reports), data)

        sent = await self.done_with_answer(shown, len(data), record)
        await wire.respond(_json(sent, annotate.headers_of(report, debug=debug)))

    async def answered(self, path: str, body: bytes, record: Record) -> tuple[bytes, JSON]:
        """The engine's whole answer as it came, and read. Raises EndpointError."""
        with record.waiting():
            data = await self.upstream.post(path, body, record.upstream_headers())
        return data, await self.done_with_answer(partial(json_object, data), len(data), record)

    def written(self, document: Callable[[], JSON], data: bytes) -> bytes:
        """An annotated answer, or what came from the engine if it cannot be annotated."""
        with boundary(self.metrics, "annotating"):
            return dumps(document())
        return data

    async def _guarded_stream(
        self, examination: Examination, record: Record, wire: Wire, debug: bool
    ) -> None:
        """Text at once, unless the policy holds it until it was judged and perhaps corrected. Of several
        answers every finish waits until all of them are complete.
        """
        policy, count = examination.policy, examination.plan.choices
        answers = [StreamReply(number if count > 1 else None) for number in range(count)]
        held = HeldWire(wire) if policy.action != ANNOTATE and policy.stream == "buffer" else None

        def strip(chunk: JSON) -> JSON:
            for answer in answers:
                answer.feed(chunk)
            return examination.strip(chunk)

        async def judge(finishes: list[JSON]) -> list[JSON]:
            with record.holding():
                read, is_large = partial(_all, answers), any(each.tokens > QUICK_TOKENS for each in answers)
                reports = await self.reports_on(examination, read, record, is_large=is_large)
            reports = [delivered(each, held) for each in reports]
            report = _noted(reports, record)
            if held is not None and held.held:
                await self._release(held, finishes, policy, reports, record, debug)
            if count > 1:
                return [annotate.each_annotated(finish, reports) for finish in finishes]
            (finish,) = finishes
            return [annotate.annotated(annotate.finished(finish, report), report)]

        body = orjson.dumps(examination.body)
        await self._relay(CHAT, body, record, held or wire, strip=strip, judge=judge, count=count)

    async def _checked(self, plan: Plan, answer: str | JSON, record: Record) -> Report:
        """Judges an answer given by the caller, under the distribution that the model itself has there."""
        if plan.skip:
            return skipped(plan)
        if not plan.schedule.top_logprobs:
            return unscored(plan, "no_logprobs")
        async with self.examine(plan, record, given=answer) as examination:
            with record.waiting():
                completion = await self.upstream.complete(examination.body, record.upstream_headers())
            is_large = len(orjson.dumps(answer)) > QUICK_TEXT
            return await self.report_on(examination, partial(reply_of, completion), record, is_large=is_large)

    def examine(self, plan: Plan, record: Record, *, given: str | JSON | None = None) -> Examination:
        """Views and rungs need slots, of which each key has a share; corrections are paid for by the key."""
        return self.guard.examine(
            plan,
            self._calling(self.probe_slots, record),
            correct=self._calling(self.rung_slots, record),
            usable=self.attachment.usable,
            budget=self.budget.of(record.key_digest),
            given=given,
            on_failure=self.metrics.step_failed,
            run=partial(self.workers.run, record.key_digest),
        )

    async def report_on(
        self, examination: Examination, read: Callable[[], Reply], record: Record, *, is_large: bool = False
    ) -> Report:
        """The report on an answer; what it tells of the engine is noted, and costs the client nothing."""
        (report,) = await self.reports_on(examination, lambda: [read()], record, is_large=is_large)
        return report

    async def reports_on(
        self,
        examination: Examination,
        read: Callable[[], list[Reply]],
        record: Record,
        *,
        is_large: bool = False,
    ) -> list[Report]:
        """The report on each answer; what the first tells of the engine is noted. is_large: whether `read`
        takes long.
        """
        report, *others = await examination.reports_on(read, is_large=is_large)
        answer = examination.answer
        with boundary(self.metrics, "measuring"):
            if answer is not None and answer.top:
                record.coverage = 1.0 - tail(probabilities(answer.top))
            if answer is not None and examination.given is None:
                self.measuring.offer(record.key_digest, examination.plan, answer, report)
                self.lengths.judged(record.key_digest, examination.plan.body["model"], report)
            if report.noise is not None and record.measures_noise:
                self.noise.measured(record.key_digest, examination.plan.body["model"], report.noise)
        return [report, *others]

    async def _release(
        self,
        held: HeldWire,
        finishes: list[JSON],
        policy: Policy,
        reports: Sequence[Report],
        record: Record,
        debug: bool,
    ) -> None:
        """Sends a held stream, with other answers in place of some of its own; raises Withheld."""
        report = first_concern(reports)
        ended = {annotate.index_of(choice) for finish in finishes for choice in annotate.choices_of(finish)}
        came = [each for each in reports if each.choice in ended] or reports
        if _all_withheld(came, policy):
            raise Withheld(report)
        instead = {
            each.choice: each.mitigation.answer
            for each in came
            if each.mitigation is not None and each.mitigation.answer is not None
        }
        if instead:
            said = (annotate.said_instead(finishes[0], answer, index) for index, answer in instead.items())
            kept = held.kept if len(reports) > 1 else b""
            others = await self.done_with_answer(partial(_without, kept, instead), len(kept), record)
            held.replace(others + b"".join(map(frame, said)))
        record.first_token_s = record.elapsed_s()
        await held.release(annotate.headers_of(report, debug=debug))

    async def _plain(self, path: str, incoming: Incoming, record: Record, wire: Wire, debug: bool) -> None:
        """Request and answer as they are. What was to be judged and what sent `modint` is told why not."""
        report = record.report
        headers = annotate.headers_of(report, debug=debug) if report else {}
        mark = report is not None and is_told(report, incoming)
        body = incoming.without_modint().bytes()
        if incoming.stream:

            async def judge(finishes: list[JSON]) -> list[JSON]:
                return [annotate.annotated(finish, report) if report else finish for finish in finishes]

            await self._relay(path, body, record, wire, judge=judge if mark else None, headers=headers)
            return
        data, completion = await self.answered(path, body, record)
        record.usage = completion.get("usage")
        if report is not None and mark:
            marked = partial(annotate.annotated, completion, report)
            data = await self.done_with_answer(partial(self.written, marked, data), len(data), record)
        await wire.respond(_json(data, headers))

    async def _relay(
        self,
        path: str,
        body: bytes,
        record: Record,
        wire: Wire | HeldWire,
        *,
        strip: Callable[[JSON], JSON] | None = None,
        judge: Judge | None = None,
        headers: dict[str, str] | None = None,
        count: int = 1,
    ) -> None:
        """Frames to the client as they come; only the finish waits, for `judge` to put the verdict on it: of
        `count` answers each one's.
        """
        choices, last = Choices(), None
        finishes: list[JSON] = []
        with record.waiting():
            async with self.upstream.stream(path, body, record.upstream_headers()) as pieces:
                async for event in events_of(pieces):
                    if not wire.streaming:
                        await wire.start(headers)
                    if is_done(event):
                        last = event  # sent once the engine's stream is closed
                        continue
                    chunk = self._read_event(event, record)
                    if chunk is None:
                        await wire.write(event)
                        continue
                    choices.feed(chunk)
                    if record.hides_usage and chunk.get("usage") and not chunk.get("choices"):
                        continue
                    shown = strip(chunk) if strip else chunk
                    if judge is None or not annotate.finishes(chunk):
                        await wire.write(self._event(event, chunk, shown))
                        continue
                    text, finish = annotate.split_finish(shown)
                    if text is not None:
                        await wire.write(frame(text))
                    finishes.append(finish)
                    if sum(map(annotate.ends, finishes)) >= count:
                        await self._finish(finishes, judge, wire)
                        judge = None
                if judge is not None and finishes:  # fewer answers than were asked for
                    await self._finish(finishes, judge, wire)
        if last is None:
            choices.check_ended()
        await wire.end(last or DONE)

    async def _finish(self, finishes: list[JSON], judge: Judge, wire: Wire | HeldWire) -> None:
        """The last chunks of all answers, with verdicts."""
        for finish, told in zip(finishes, await judge(finishes), strict=True):
            await wire.write(self._event(frame(finish), finish, told))

    def _event(self, event: bytes, chunk: JSON, shown: JSON) -> bytes:
        """The event of a chunk, written anew if another is shown in its place and can be written."""
        with boundary(self.metrics, "annotating"):
            return event if shown == chunk else frame(shown)
        return event

    def _read_event(self, event: bytes, record: Record) -> JSON | None:
        """The chunk in an event, noted in the record; None for a comment. Raises EndpointError."""
        data = data_of(event)
        if data is None:
            return None
        chunk = chunk_of(data)
        if chunk.get("error"):
            raise self.upstream.failed(_error_in(chunk, data))
        record.usage = chunk.get("usage") or record.usage
        if annotate.has_text(chunk):
            record.token_seen()
        return chunk

    def _calling(self, slots: Places, record: Record) -> Complete:
        """Calls of the engine that need a slot; who waits for one is seen in `modint_queue_depth`."""

        async def complete(body: JSON) -> JSON:
            with self.attachment.queueing(body["model"]):
                await slots.wait(record.key_digest)
            try:
                headers = record.upstream_headers(f"-probe-{next(record.probes)}")
                data = await self.upstream.completed(body | self.attachment.probe_options, headers)
                return await self.done(partial(json_object, data), len(data), record)
            finally:
                slots.give_back(record.key_digest)

        return complete


def delivered(report: Report, held: HeldWire | None) -> Report:
    """The report, saying whether a new answer comes after the old one was already sent."""
    mended = report.mitigation
    if mended is None or mended.answer is None or (held is not None and held.held):
        return report
    return replace(report, mitigation=replace(mended, correction=True))


def _noted(reports: Sequence[Report], record: Record) -> Report:
    """The report that speaks for all answers; the record has all of them."""
    record.report = first_concern(reports)
    record.others = [report for report in reports if report is not record.report]
    return record.report


def _all_withheld(reports: Sequence[Report], policy: Policy) -> bool:
    """Whether the client gets an error envelope: of the answers that came, none is given."""
    return all(annotate.is_withheld(report, policy.abstain_as) for report in reports)


def _without(frames: bytes, indices: Collection[int]) -> bytes:
    """The frames of a stream without what they say of these answers."""
    kept = []
    for event in Splitter().feed(frames):
        data = data_of(event)
        chunk = chunk_of(data) if data is not None else None
        others = annotate.without_answers(chunk, indices) if chunk is not None else None
        if others is not None:
            kept.append(event if others is chunk else frame(others))
    return b"".join(kept)


def _all(answers: list[StreamReply]) -> list[Reply]:
    return [answer.reply() for answer in answers]


def _absent(name: str, options: ModintOptions) -> tuple[str, ...]:
    """A probe, unless the request asks for it anyway or for as many as there may be."""
    asked = options.probes or ()
    return () if name in asked or len(asked) > MAX_ASKED else (name,)


def is_told(report: Report, incoming: Incoming) -> bool:
    """Whether the object goes into an answer that is passed on: an unscored one always has it."""
    verdict = report.verdict
    return verdict.state is State.UNSCORED or (verdict.reason != "opted_out" and "modint" in incoming.body)


def _answer_of(body: JSON) -> str | JSON:
    answer = body.get("answer")
    said = answer.get("content") if isinstance(answer, dict) else answer
    calls = answer.get("tool_calls") if isinstance(answer, dict) else None
    if not (isinstance(said, str) and said.strip()) and not (isinstance(calls, list) and calls):
        raise RequestError(
            "answer must be the text to be judged, or an assistant's message with content or tool_calls",
            param="answer",
            code="invalid_answer",
        )
    return answer if isinstance(answer, dict) else str(answer)


def _error_in(chunk: JSON, data: bytes) -> EndpointError:
    error = chunk["error"]
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return EndpointError("the engine reported an error in the stream", status=status, body=data)


def _json(data: bytes, headers: dict[str, str]) -> Response:
    return Response(data, 200, headers, "application/json")
