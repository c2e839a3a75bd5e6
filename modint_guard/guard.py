"""The guard: send a request and its perturbed views, compare the answers, say which modality decided.

Start reading here. `Guard.inspect` is the whole flow; the gateway walks the same steps one by one, because it
streams and measures in between:

    plan    chat.parse → relevance.decide → the views    what to ask, or why nothing is asked
    main_body, probe    the request and its views        stages.ask → probe.run, one deadline
    judge   scoring.score → policy.decide → Report       pure
    mitigate    ladder.climb → Report                    where a policy asks for it, and the answer is flagged
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from modint_guard.chat import relevance
from modint_guard.chat.eligibility import continues, why_skipped
from modint_guard.chat.reply import StreamReply as StreamReply
from modint_guard.chat.reply import reply_of as reply_of
from modint_guard.chat.reply import strip_added as strip_added
from modint_guard.chat.request import parse, parse_options, with_question_after
from modint_guard.config import GuardConfig
from modint_guard.errors import EndpointError, RequestError
from modint_guard.judging import scoring
from modint_guard.judging import verdict as policy
from modint_guard.judging.calibration import Calibration
from modint_guard.judging.relevance import by_self_ask
from modint_guard.judging.risk import Thresholds
from modint_guard.judging.text_match import MAX_TOKENS, is_short, score_words, words_result
from modint_guard.mitigation import ladder
from modint_guard.mitigation.policy import Policy, policy_for
from modint_guard.mitigation.rungs import Case
from modint_guard.probing import regenerate as doubt
from modint_guard.probing import schedule as stages
from modint_guard.probing.probe import Answered
from modint_guard.probing.views import VIEWS, ViewMaker, asked_briefly
from modint_guard.types import (
    ANNOTATE,
    CELLS,
    FIRST_TOKEN,
    JSON,
    NEUTRAL_IMAGE,
    NO_CONTEXT,
    NOOP,
    PRIOR,
    REGENERATED,
    SELF_ASKED,
    Asked,
    Chat,
    Complete,
    Inspection,
    ModintOptions,
    Plan,
    Relevant,
    RelevantSource,
    Replies,
    Reply,
    Report,
    Score,
    State,
    Verdict,
    View,
)

_NOT_OURS = (401, 408, 429)  # refusals that no other body would change
NOTE_IMAGE_ONLY = "No context could be told from the question: only image probes ran."
NOTE_UNFIT = "The probe {name} does not fit this request: it needs a block of labelled options."
NOTE_UNSTABLE = "The answer also changed under a harmless change ({names}): it moves with anything."
NOTE_BY_FIRST = "Settled by the first probe; the other cells were not asked. `modint.probes` asks for them."
NOTE_BY_EACH = "Decided by what each modality alone says; what neither would say was not asked."
NOTE_TOO_LONG = "Without log-probabilities only short answers are compared, by generating them again."
NOTE_UNLISTED = (
    "Neither the model nor a view has the answer's first word among its likely ones: nothing to compare."
)
NOTE_GAIN = "The engine scales its attention to pictures by {gain:g} (experimental)."
NOTE_FIRST_TOKEN = "Judged at the first word of the answer; what follows it was not compared."


class Guard:
    """Examines chat completions for modality interference. Holds no state besides its configuration."""

    def __init__(
        self,
        config: GuardConfig | None = None,
        *,
        extra_views: Mapping[str, ViewMaker] | None = None,
        calibrations: Iterable[Calibration] = (),
    ) -> None:
        """`extra_views` are further probes that a request may ask for by name in `modint.probes`;
        `calibrations` replace the default thresholds for the models they were made for.
        """
        self.config = config or GuardConfig()
        self.calibrations = {each.served_name: each for each in calibrations}
        self._views: dict[str, ViewMaker] = {**VIEWS, **(extra_views or {})}

    async def inspect(
        self, body: JSON, complete: Complete, options: ModintOptions | None = None
    ) -> Inspection:
        """Answer `body` through `complete` and judge the answer.

        body: an OpenAI chat body, not streamed; a `modint` field in it is read and never sent on.
        complete: sends a chat body somewhere and returns the completion, e.g. `Endpoint.complete`.
        Returns the completion, with the `modint` object in it, and the same as a typed `Report`. A flagged
        answer is mended where the policy or `modint.action` asks for it (`mitigate`). Where the
        log-probabilities are refused, the body is sent once more as it was given, and the answer is unscored.
        Raises RequestError for a bad body and whatever `complete` raises for the request itself; a failing
        probe raises nothing and leaves the answer unscored.
        """
        plan = self.plan(body, options)
        try:
            completion, replies = await self._ask(plan, complete)
            answer = reply_of(completion)
            report = self.judge(plan, answer, replies)
        except EndpointError as exc:
            if not self.may_refuse_ours(plan, exc):
                raise
            completion = await complete(plan.body)
            report = self.unjudged(plan, Verdict(State.UNSCORED, reason="upstream_error"))
        else:
            report = await self.mitigate(plan, answer, replies, report, complete)
        shown = ladder.served(strip_added(completion, plan.asked), report.mitigation)
        return Inspection({**shown, "modint": report.to_json()}, report)

    def plan(
        self,
        body: JSON,
        options: ModintOptions | None = None,
        *,
        max_top_logprobs: int | None = None,
        forcing: bool = True,
        noise: float = 0.0,
    ) -> Plan:
        """Split the request, decide which modality ought to decide it, prepare the views. Raises
        RequestError.

        max_top_logprobs: what the upstream takes at most; with 0 there are no views.
        forcing: whether it can score a given answer, where the configuration has that done.
        noise: the largest change of a probability seen when it was asked the same again.
        Decodes every image, which may take tens of milliseconds: an event loop runs it in a thread.
        """
        options = options or parse_options(body.get("modint") if isinstance(body, dict) else None)
        chat = parse(body, options, self.config.image_limits, decode=options.mode == "on")
        skip = why_skipped(chat, options)
        relevant, source = relevance.decide(chat, options, self.config.relevance_rules)
        top = self.config.top_logprobs
        top = top if max_top_logprobs is None else min(top, max_top_logprobs)
        regenerate = not top and self.config.regenerate
        thrifty = _is_thrifty(
            policy_for(self.config.policies, str(body.get("model")), chat.question, options.action)
        )
        if thrifty and relevant is Relevant.IMAGE and chat.context is None:
            # Nothing could be mended, so nothing is asked; one probe of the noise is no reason to.
            skip = skip or (None if set(options.probes or ()) - {NOOP} else "no_context")
        names = () if skip or not (top or regenerate) else self._probe_names(chat, options)
        names = (*names, NOOP) if regenerate and names and NOOP not in names else names
        changed = {name: self._views[name](chat) for name in names}
        if top and names and relevant is Relevant.UNKNOWN and self.config.self_ask == "auto":
            changed[SELF_ASKED] = with_question_after(chat, relevance.SELF_ASK)
        unfit = [name for name, body in changed.items() if body is None]
        plan = Plan(
            body=chat.body,
            options=options,
            asked=_asked(chat.body),
            chat=chat,
            relevant=relevant,
            relevant_source=source,
            views=tuple(View(name, self._view_body(body, top)) for name, body in changed.items() if body),
            noise=noise,
            regenerate=regenerate,
            deadline_s=min(options.deadline_s or self.config.deadline_s, self.config.max_deadline_s),
            top_logprobs=top,
            forcing=forcing and self.config.teacher_forcing and bool(names) and not continues(chat.body),
            skip=skip,
            thrifty=thrifty,
            notes=(
                *(() if skip or chat.context is not None else (NOTE_IMAGE_ONLY,)),
                *self._gain_note(),
                *(NOTE_UNFIT.format(name=name) for name in unfit),
            ),
        )
        if regenerate:
            return plan
        later = self._later(plan)
        return replace(plan, later=later, last=later & {PRIOR} if thrifty else frozenset())

    def _gain_note(self) -> tuple[str, ...]:
        gain = self.config.image_attention
        return () if gain == 1.0 else (NOTE_GAIN.format(gain=gain),)

    def main_body(self, plan: Plan) -> JSON:
        """The client's body as it goes upstream: log-probabilities added, `modint` removed."""
        if plan.skip or not plan.top_logprobs:
            return plan.body
        top = max(plan.top_logprobs, plan.asked.top_logprobs)
        ids = {"return_token_ids": True} if plan.forcing else {}
        return {**plan.body, "logprobs": True, "top_logprobs": top, **ids}

    def may_refuse_ours(self, plan: Plan, error: EndpointError) -> bool:
        """Whether the upstream refused `main_body` and that may be for the log-probabilities we added."""
        refused = error.status is not None and 400 <= error.status < 500
        return refused and error.status not in _NOT_OURS and self.main_body(plan) != plan.body

    async def probe(self, plan: Plan, complete: Complete, *, answered: Answered | None = None) -> Replies:
        """Send the views (`stages` says when); never raises but for cancellation. The deadline counts from
        `answered`.
        """
        settles = partial(self._settles, plan)
        replies = await stages.ask(plan, complete, self.config, settles=settles, answered=answered)
        answer = await asyncio.shield(answered) if answered is not None and self.config.regenerate else None
        known = self._informed(plan, replies)
        if answer is None:
            return replies
        is_open = partial(doubt.is_open, known, answer, partial(self.score, known, answer, replies))
        if not stages.surely(is_open, "the first word"):
            return replies
        return await doubt.ask(known, complete, answer, replies)

    def judge(self, plan: Plan, answer: Reply, replies: Replies) -> Report:
        """Score the replies against the answer and decide. Pure."""
        reason, chat = plan.skip or answer.skip, plan.chat
        if reason is not None or chat is None:
            return self.unjudged(plan, Verdict(State.SKIPPED, reason=reason or "no_image"), replies)
        if plan.regenerate and plan.views:
            return self._judge_words(plan, chat, answer, replies)
        if not plan.top_logprobs:
            return self.unjudged(plan, Verdict(State.UNSCORED, reason="no_logprobs"))
        plan = self._informed(plan, replies)
        if doubt.whole(replies) and (found := self._judge_whole(plan, chat, answer, replies)):
            return found
        score = self.score(plan, answer, replies)
        assert score is not None
        has_context = chat.context is not None
        thresholds, fitted = self._thresholds(plan, score)
        verdict = policy.decide(score, plan.relevant, thresholds, has_context=has_context)
        # What a calibration promises, it promises of answers of one token, or of answers scored whole.
        calibrated = fitted and not score.partial and verdict.risk is not None
        verdict = replace(verdict, calibrated=calibrated)
        return self._report(plan, answer, replies, score, verdict)

    def policy_of(self, plan: Plan) -> Policy:
        """What is done about a flagged answer to this request."""
        question = plan.chat.question if plan.chat else ""
        model = str(plan.body.get("model"))
        return policy_for(self.config.policies, model, question, plan.options.action)

    async def mitigate(
        self,
        plan: Plan,
        answer: Reply,
        replies: Replies,
        report: Report,
        complete: Complete,
        *,
        policy: Policy | None = None,
        max_tokens: int | None = None,
    ) -> Report:
        """The report with what was tried about a flagged answer; as it is where there is nothing to do.

        policy: that of the request where it is None. max_tokens: a further limit on what it may cost. Raises
        nothing but CancelledError: a failing rung leaves the original answer.
        """
        policy = policy or self.policy_of(plan)
        if policy.action == ANNOTATE or report.verdict.state is not State.FLAGGED or plan.chat is None:
            return report
        case = Case(
            plan=plan,
            chat=plan.chat,
            answer=answer,
            replies=scoring.comparable(answer, replies),
            report=report,
            min_option_mass=self.config.thresholds.min_option_mass,
        )
        found = await ladder.climb(case, policy, complete, self._examined, max_tokens=max_tokens)
        return replace(report, action=found.action, mitigation=found)

    async def _examined(self, plan: Plan, complete: Complete) -> tuple[Reply, Report]:
        """A request asked and judged, and not mended."""
        completion, replies = await self._ask(plan, complete)
        answer = reply_of(completion)
        return answer, self.judge(plan, answer, replies)

    def _settles(self, plan: Plan, answer: Reply, replies: Replies) -> bool:
        """Whether the views that were asked so far suffice for a verdict, and for mending it."""
        plan = self._informed(plan, replies)
        score = None if answer.skip else self.score(plan, answer, replies)
        if score is None:
            return False
        thresholds, mends = self._thresholds(plan, score)[0], self.policy_of(plan).action != ANNOTATE
        return policy.settled(score, plan.relevant, thresholds, mends=mends) is not None

    def _later(self, plan: Plan) -> frozenset[str]:
        """The views that an early stop may save: all cells but the first."""
        first = policy.FIRST.get(plan.relevant)
        has_context = plan.chat is not None and plan.chat.context is not None
        own = self.calibrations.get(str(plan.body.get("model")))
        own_stop = self.config.thresholds.clear_below if own is None else own.stops_early(plan.relevant)
        if first is None or not has_context or not (plan.thrifty or own_stop):
            return frozenset()
        return frozenset(CELLS) - {first} - frozenset(plan.options.probes or ())

    def _thresholds(self, plan: Plan, score: Score) -> tuple[Thresholds, bool]:
        """The constants for this request, and whether they were fitted for its model."""
        own = self.calibrations.get(str(plan.body.get("model")))
        fits = own is not None and own.method == score.method
        fitted = own.thresholds(plan.relevant, self.config.thresholds) if own and fits else None
        found = fitted or self.config.thresholds
        if plan.thrifty:  # below flag_at no answer is flagged as text or image, whatever the other cells say
            found = replace(found, clear_below=found.flag_at)
        return found, fitted is not None

    def _judge_words(self, plan: Plan, chat: Chat, answer: Reply, replies: Replies) -> Report:
        """Judge by the words of answers that were generated again; a verdict without a risk."""
        if not is_short(answer):
            unscored = self.unjudged(plan, Verdict(State.UNSCORED, reason="no_logprobs"), replies)
            return replace(unscored, method=REGENERATED, notes=(*plan.notes, NOTE_TOO_LONG))
        score = score_words(answer, replies if plan.regenerate else doubt.whole(replies), chat)
        lenient = replace(self.config.thresholds, flag_at=0.0, clear_below=0.0)
        verdict = policy.decide(score, plan.relevant, lenient, has_context=chat.context is not None)
        if verdict.state is State.FLAGGED and NOOP in score.missing:
            verdict = Verdict(State.UNSCORED, reason=score.missing[NOOP])
        return self._report(plan, answer, replies, score, replace(verdict, risk=None))

    def _judge_whole(self, plan: Plan, chat: Chat, answer: Reply, replies: Replies) -> Report | None:
        """Judge a short answer of several words by the views that were generated whole; None where too few
        were.
        """
        if doubt.is_closed(plan, replies):
            return self._judge_words(plan, chat, answer, replies)
        if not doubt.says_the_same(plan, answer, replies):
            return None
        score = score_words(answer, doubt.whole(replies), chat)
        return self._report(plan, answer, replies, score, Verdict(State.PASS))

    def _informed(self, plan: Plan, replies: Replies) -> Plan:
        """The plan with the relevance that the model itself named, where it was asked and is sure."""
        said = replies.get(SELF_ASKED)
        if not isinstance(said, Reply):
            return plan
        relevant = by_self_ask(said, self.config.self_ask_confident)
        source: RelevantSource = "none" if relevant is Relevant.UNKNOWN else "self_ask"
        return replace(plan, relevant=relevant, relevant_source=source)

    def score(self, plan: Plan, answer: Reply, replies: Replies) -> Score | None:
        """All features of the answer; None where nothing was probed. Pure."""
        if plan.chat is None or plan.skip or not plan.top_logprobs:
            return None
        known = scoring.beyond_noise(self.config.thresholds, plan.noise)
        return scoring.score(answer, replies, plan.chat, known)

    def own_body(self, plan: Plan) -> JSON:
        """The unchanged conversation, asked as briefly as a view: what the model itself would say first."""
        return self._view_body(plan.body, plan.top_logprobs)

    def judge_given(self, plan: Plan, given: str, own: Reply, replies: Replies) -> Report:
        """Judge an answer given elsewhere. `own` is the model's reply to `own_body`: its distribution is that
        of the request, y is the first word of `given`. Unscored where nobody lists that word. Pure.
        """
        word = scoring.first_word(given, [option.label for option in plan.chat.options] if plan.chat else ())
        skip = None if own.skip == "empty_answer" else own.skip
        report = self.judge(plan, replace(own, text=given, token=word, skip=skip), replies)
        if skip or plan.skip or not own.top or scoring.is_listed(word, (own, *replies.values())):
            return report
        reason = report.verdict.reason if report.verdict.state is State.UNSCORED else "incomplete"
        unlisted = self.unjudged(plan, Verdict(State.UNSCORED, reason=reason), replies)
        return replace(unlisted, notes=(*unlisted.notes, NOTE_UNLISTED))

    def unjudged(self, plan: Plan, verdict: Verdict, replies: Replies | None = None) -> Report:
        """The report of an answer that was not compared; the probes that ran are named with their cost."""
        return Report(
            verdict=verdict,
            relevant=plan.relevant,
            relevant_source=plan.relevant_source,
            probes=tuple(scoring.unjudged_result(name, reply) for name, reply in (replies or {}).items()),
            notes=plan.notes,
        )

    async def _ask(self, plan: Plan, complete: Complete) -> tuple[JSON, Replies]:
        """The request and its views, at once; the views are cancelled with the request."""
        if not plan.views:
            return await complete(self.main_body(plan)), {}
        answered: Answered = asyncio.get_running_loop().create_future()
        probes = asyncio.create_task(self.probe(plan, complete, answered=answered))
        try:
            completion = await complete(self.main_body(plan))
            answered.set_result(reply_of(completion))
            return completion, await probes
        finally:
            probes.cancel()
            await asyncio.gather(probes, return_exceptions=True)

    def _probe_names(self, chat: Chat, options: ModintOptions) -> tuple[str, ...]:
        """The cells this request has, then the probes it asks for besides."""
        cells = CELLS if chat.context is not None else (NEUTRAL_IMAGE,)
        asked = options.probes or ()
        for name in asked:
            if name not in self._views:
                raise _unknown_probe(name, tuple(self._views))
        names = (*cells, *(name for name in asked if name not in CELLS))
        if len(names) > self.config.max_probes:
            raise RequestError(
                f"`modint.probes` comes to {len(names)} probes, the limit is {self.config.max_probes}.",
                param="modint.probes",
                code="too_many_probes",
            )
        return names

    def _view_body(self, body: JSON, top_logprobs: int) -> JSON:
        tokens = self.config.view_tokens if top_logprobs else MAX_TOKENS
        return asked_briefly(body, tokens, top_logprobs)

    def _report(self, plan: Plan, answer: Reply, replies: Replies, score: Score, verdict: Verdict) -> Report:
        assert plan.chat is not None
        noise = max(plan.noise, score.noise or 0.0)
        thresholds = scoring.beyond_noise(self.config.thresholds, noise)
        replies = scoring.comparable(answer, replies)
        longer = score.method == FIRST_TOKEN and len(answer.text.split()) > 1
        return Report(
            verdict=verdict,
            relevant=plan.relevant,
            relevant_source=plan.relevant_source,
            examined=_examined(score),
            influence_text=score.influence_text,
            influence_image=score.influence_image,
            synergy=score.synergy,
            relative_entropy=score.relative_entropy,
            noise=score.noise,
            image_only=score.image_only,
            text_only=score.text_only,
            probes=tuple(
                words_result(name, answer, reply, plan.chat)
                if plan.regenerate or (isinstance(reply, Reply) and reply.whole)
                else scoring.probe_result(name, answer, reply, plan.chat, thresholds)
                for name, reply in replies.items()
            ),
            method=score.method,
            notes=(
                *plan.notes,
                *((NOTE_FIRST_TOKEN,) if longer else ()),
                *_stopped(plan, replies),
                *((NOTE_UNSTABLE.format(names=", ".join(score.unstable)),) if score.unstable else ()),
            ),
        )


def _asked(body: JSON) -> Asked:
    top = body.get("top_logprobs") or 0
    if isinstance(top, bool) or not isinstance(top, int) or top < 0:
        raise RequestError("`top_logprobs` must be a whole number, 0 or more.", param="top_logprobs")
    return Asked(bool(body.get("logprobs")), top, bool(body.get("return_token_ids")))


def _is_thrifty(policy: Policy) -> bool:
    return policy.action != ANNOTATE and policy.early_stop


def _stopped(plan: Plan, replies: Replies) -> tuple[str, ...]:
    """What an early stop left out, in words."""
    if not plan.later - set(replies):
        return ()
    return (NOTE_BY_FIRST,) if len(set(CELLS) & set(replies)) == 1 else (NOTE_BY_EACH,)


def _examined(score: Score) -> tuple[str, ...]:
    """The modalities whose removal was compared."""
    by_cell = {NO_CONTEXT: "text", NEUTRAL_IMAGE: "image"}
    return tuple(modality for cell, modality in by_cell.items() if cell in score.cells)


def _unknown_probe(name: str, known: tuple[str, ...]) -> RequestError:
    near = difflib.get_close_matches(name[:40], known, n=1, cutoff=0.0)[0]
    return RequestError(
        f"`modint.probes` names {name[:40]!r}, which is no probe here: did you mean {near!r}?",
        param="modint.probes",
        code="unknown_probe",
    )
