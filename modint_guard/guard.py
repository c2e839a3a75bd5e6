"""The guard: sends a request and its perturbed views, compares the answers, and says which modality decided.

Start reading here. `Guard.inspect` is the whole flow in one call. The gateway takes the same steps one by
one, because it streams and measures in between:

    plan           chat.request → chat.relevance → probing.views     what is asked, or why nothing is
    examine        one `Examination`: the request and its views, one deadline
    report_on      judging.scoring → judging.verdict → Report        pure
                   mitigation.ladder → Report                        if a policy asks for it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from modint_guard.chat.reply import answers_of
from modint_guard.config import GuardConfig
from modint_guard.errors import EndpointError
from modint_guard.examination import Budget, Examination, Run, at_once
from modint_guard.judge import Judge, unscored
from modint_guard.judging.calibration import Calibration
from modint_guard.judging.null import Null
from modint_guard.mitigation.ladder import served
from modint_guard.plan import make_plan, policy_of
from modint_guard.probing.views import VIEWS, ViewMaker
from modint_guard.report import Inspection, first_concern, with_reports
from modint_guard.types import JSON, Complete, ModintOptions, Plan


class Guard:
    """Examines chat completions for modality interference. It has no state besides its configuration."""

    def __init__(
        self,
        config: GuardConfig | None = None,
        *,
        extra_views: Mapping[str, ViewMaker] | None = None,
        calibrations: Iterable[Calibration] = (),
        nulls: Mapping[str, Null] | None = None,
    ) -> None:
        """extra_views: further probes, which a request may ask for by name in `modint.probes`. calibrations:
        are used for the models that they were made for. nulls: by served name, the
        scores of harmless inputs that answers of these models are judged by; read anew for each answer.
        """
        self.config = config or GuardConfig()
        self.judge = Judge(
            self.config,
            {calibration.served_name: calibration for calibration in calibrations},
            {} if nulls is None else nulls,
        )
        self._views: dict[str, ViewMaker] = {**VIEWS, **(extra_views or {})}

    async def inspect(
        self, body: JSON, complete: Complete, options: ModintOptions | None = None
    ) -> Inspection:
        """Answer `body` through `complete`, and judge the answer.

        body: an OpenAI chat body, not streamed; a `modint` field in it is read and never sent on. complete:
        sends a chat body somewhere and returns the completion, such as `Endpoint.complete`. options: replace
        the body's `modint` field. Returns the completion with the `modint` object in it, and the same as a
        typed `Report`; of several answers that of the first concern (`report.first_concern`). A flagged
        answer is corrected if the policy or `modint.action` asks for it. If the engine refuses the
        log-probabilities or breaks on them, the body is sent again as it was given, and the answer is
        unscored. Raises RequestError for a bad body, and whatever `complete` raises for the request itself.
        A failing probe raises nothing and leaves the answer unscored.
        """
        plan = self.plan(body, options)
        examination = self.examine(plan, complete)
        try:
            async with examination:
                completion = await complete(examination.body)
                answers = answers_of(completion, plan.choices)
                reports = await examination.reports_on(lambda: answers)
        except EndpointError as exc:
            if not (examination.refused_additions(exc) or examination.failed_on_additions(exc)):
                raise
            completion, reports = await complete(plan.body), [unscored(plan, "upstream_error")]
        report = first_concern(reports)
        completion = served(examination.strip(completion), reports)
        return Inspection(with_reports(completion, reports), report)

    def plan(
        self,
        body: JSON,
        options: ModintOptions | None = None,
        *,
        max_top_logprobs: int | None = None,
        forcing: bool = True,
        last_rows: bool = False,
        noise: float = 0.0,
        expects_longer: bool = False,
    ) -> Plan:
        """Split the request, decide which modality ought to decide its answer, and prepare the views.

        max_top_logprobs: the largest number of alternatives that the engine lists; with 0 nothing is compared
        by probabilities. forcing: whether the engine can score a given answer. last_rows: whether it can be
        asked to score the end of a prompt alone, as with this package's plugin. noise: the largest change of
        a probability that was seen when the engine was asked the same again, in [0, 1]. expects_longer:
        whether the answer will probably be scored as a whole, so that views had better wait for it. A verdict
        does not depend on it, but that on an answer of one word comes later. Raises RequestError.
        Decodes every image, which may take tens of milliseconds: run it in a thread beside an event loop.
        """
        return make_plan(
            body,
            options,
            self.config,
            self._views,
            self.judge.calibrations,
            max_top_logprobs=max_top_logprobs,
            forcing=forcing,
            last_rows=last_rows,
            noise=noise,
            expects_longer=expects_longer,
        )

    def examine(
        self,
        plan: Plan,
        complete: Complete,
        *,
        usable: Callable[[str], bool] = lambda adapter: True,
        budget: Budget | None = None,
        given: str | JSON | None = None,
        correct: Complete | None = None,
        on_failure: Callable[[str], None] = lambda step: None,
        run: Run = at_once,
    ) -> Examination:
        """The examination of one request, to be used in `async with`.

        complete: sends the bodies of views to the engine. usable: whether an adapter can be asked; one that
        cannot is left out of the policy. budget: what corrections may cost, in tokens. given: an answer from
        elsewhere, its text or the assistant's message that it is, to be judged in place of the model's own.
        Raises EndpointError for a message of another shape. correct: sends the bodies of rungs; None for
        `complete`. on_failure: called with a step that failed and cost no answer, one of `examination.STEPS`.
        run: does what takes long, the judging of longer answers; beside an event loop, in a thread.
        """
        policy = policy_of(plan.chat, plan.options, self.config)
        if not usable(policy.robust):
            policy = replace(policy, robust="")
        return Examination(
            plan,
            complete,
            self.judge,
            policy=policy,
            budget=budget,
            given=given,
            correct=correct,
            on_failure=on_failure,
            run=run,
        )
