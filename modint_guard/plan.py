"""What will be done with one request: its parts, what ought to decide, and the views that will be sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modint_guard.chat import relevance
from modint_guard.chat.eligibility import choices_of, continues, is_constrained, why_skipped
from modint_guard.chat.options import parse_options
from modint_guard.chat.rebuild import with_question_after
from modint_guard.chat.request import parse
from modint_guard.config import GuardConfig
from modint_guard.errors import RequestError, nearest
from modint_guard.judging import verdict
from modint_guard.judging.calibration import Calibration
from modint_guard.judging.text_match import MAX_TOKENS
from modint_guard.mitigation.policy import Policy, policy_for
from modint_guard.probing.views import BARE, ViewMaker, short_body, unconstrained
from modint_guard.types import (
    ANNOTATE,
    CELLS,
    FIRST_TOKEN,
    JSON,
    LEFT_OUT,
    NAMED_SOURCES,
    NEUTRAL_IMAGE,
    NOOP,
    PRIOR,
    REGENERATED,
    SELF_ASKED,
    TEACHER_FORCED,
    Chat,
    ModintOptions,
    Plan,
    Relevant,
    RelevantSource,
    Schedule,
    TokenOptions,
    View,
)

NOTE_IMAGE_ONLY = "No context could be told from the question: only image probes ran."
NOTE_UNFIT = (
    "The probe {name} does not fit this request: it needs a block of labelled options, other texts, "
    "pictures of another size, or an answer whose form is free."
)
NOTE_MANY_PICTURES = f"Of more than {len(LEFT_OUT)} pictures none was left out alone."
NOTE_GAIN = "The engine scales its attention to pictures by {gain:g} (experimental)."


def make_plan(
    body: JSON,
    options: ModintOptions | None,
    config: GuardConfig,
    makers: Mapping[str, ViewMaker],
    calibrations: Mapping[str, Calibration],
    *,
    max_top_logprobs: int | None = None,
    forcing: bool = True,
    last_rows: bool = False,
    noise: float = 0.0,
    expects_longer: bool = False,
) -> Plan:
    """Split the request, decide which modality ought to decide its answer, and prepare the views.

    options: None to read the body's `modint` field. makers: how each probe changes a chat, by name.
    calibrations: by served name. max_top_logprobs: the largest number of alternatives that the engine lists;
    with 0 nothing is compared by probabilities. forcing: whether the engine can score a given answer.
    last_rows: whether it can be asked to score the end of a prompt alone. noise: as `Plan.noise`.
    expects_longer: whether the answer will probably be scored as a whole, so that views wait for it. Raises
    RequestError. Decodes every image, which may take tens of milliseconds.
    """
    options = options or parse_options(body.get("modint") if isinstance(body, dict) else None)
    chat = parse(body, options, config.image_limits, decode=options.mode == "on")
    decided = relevance.decide(chat, options, config.relevance_rules)
    relevant, source = decided.relevant, decided.source
    judged_as = decided.supposed if relevant is Relevant.UNKNOWN else relevant
    makers = {**makers, **BARE} if judged_as in (Relevant.TEXT, Relevant.UNKNOWN) else makers
    top = config.top_logprobs if max_top_logprobs is None else min(config.top_logprobs, max_top_logprobs)
    policy = policy_of(chat, options, config)
    early_stop = _stops_early(policy)
    can_force = bool(top) and forcing and config.teacher_forcing and not continues(chat.body)
    skip = why_skipped(chat, options, can_score=can_force)
    constrained = skip is None and is_constrained(chat.body)
    if skip is None and not set(options.probes or ()) - {NOOP}:
        skip = "no_context" if _is_settled(chat, judged_as, source, early_stop=early_stop) else None
    regenerate = not top and config.regenerate
    names = () if skip or not (top or regenerate) else _probe_names(chat, options, config, makers)
    if regenerate and names and NOOP not in names:
        names = (*names, NOOP)
    if constrained:  # its first token is the form's, under every view
        names = tuple(name for name in names if name != NOOP)
    fitting = (*CELLS, *LEFT_OUT) if constrained else names
    bodies = {name: makers[name](chat) if name in fitting else None for name in names}
    if top and names and relevant is Relevant.UNKNOWN and config.self_ask == "auto":
        bodies[SELF_ASKED] = with_question_after(chat, relevance.SELF_ASK)
    if constrained:
        bodies = {name: unconstrained(changed) if changed else None for name, changed in bodies.items()}
    views = tuple(View(name, view_body(changed, top, config)) for name, changed in bodies.items() if changed)
    later = (
        frozenset() if regenerate else _later(chat, options, relevant, calibrations, early_stop=early_stop)
    )
    return Plan(
        body=chat.body,
        options=options,
        token_options=_token_options(chat.body),
        chat=chat,
        relevant=relevant,
        relevant_source=source,
        relevant_probability=decided.probability,
        likely=decided.likely,
        supposed=decided.supposed,
        schedule=Schedule(
            views=views,
            stages=_stages(views, later, early_stop=early_stop, constrained=constrained),
            method=REGENERATED if regenerate else TEACHER_FORCED if can_force and names else FIRST_TOKEN,
            early_stop=early_stop,
            corrects=policy.action != ANNOTATE,
            waits=expects_longer and can_force and not constrained and policy.action == ANNOTATE,
            top_logprobs=top,
            max_forced_tokens=config.max_forced_tokens,
            forced_logprobs=min(config.forced_logprobs, top),
            last_rows=last_rows,
            deadline_s=min(options.deadline_s or config.deadline_s, config.max_deadline_s),
            constrained=constrained,
        ),
        noise=noise,
        skip=skip,
        choices=choices_of(chat.body) or 1,
        notes=(
            *(() if skip or chat.context is not None else (NOTE_IMAGE_ONLY,)),
            *((NOTE_MANY_PICTURES,) if names and len(chat.images) > len(LEFT_OUT) else ()),
            *(() if config.image_attention == 1.0 else (NOTE_GAIN.format(gain=config.image_attention),)),
            *(NOTE_UNFIT.format(name=name) for name, changed in bodies.items() if changed is None),
        ),
    )


def main_body(plan: Plan) -> JSON:
    """The client's body as it goes to the engine: without `modint`, and with log-probabilities asked for."""
    schedule = plan.schedule
    if plan.skip or not schedule.top_logprobs:
        return plan.body
    top = max(schedule.top_logprobs, plan.token_options.top_logprobs)
    ids = {"return_token_ids": True} if schedule.method == TEACHER_FORCED else {}
    return {**plan.body, "logprobs": True, "top_logprobs": top, **ids}


def view_body(body: JSON, top_logprobs: int, config: GuardConfig) -> JSON:
    """A body as it is sent for a view: it asks for the first word of an answer, or, without log-probabilities
    (`top_logprobs` 0), for a short answer.
    """
    return short_body(body, config.view_tokens if top_logprobs else MAX_TOKENS, top_logprobs)


def policy_of(chat: Chat, options: ModintOptions, config: GuardConfig) -> Policy:
    """The policy for this request: what is done about its answer if that is flagged."""
    return policy_for(config.policies, str(chat.body.get("model")), chat.question, options.action)


def _is_settled(chat: Chat, relevant: Relevant, source: RelevantSource, *, early_stop: bool) -> bool:
    """Whether no view could change the verdict: there is no context to remove, and the picture is not known
    to be irrelevant. If the request or a route names the picture, an answer that comes without it is flagged;
    but nothing could be corrected then (`early_stop`).
    """
    if chat.context is not None or relevant is Relevant.TEXT:
        return False
    return source not in NAMED_SOURCES or (early_stop and relevant is Relevant.IMAGE)


def _stops_early(policy: Policy) -> bool:
    return policy.action != ANNOTATE and policy.early_stop


def _later(
    chat: Chat,
    options: ModintOptions,
    relevant: Relevant,
    calibrations: Mapping[str, Calibration],
    *,
    early_stop: bool,
) -> frozenset[str]:
    """The views that an early stop may save: all that are sent without being asked for, but the first."""
    first = verdict.FIRST_VIEW.get(relevant)
    calibration = calibrations.get(str(chat.body.get("model")))
    clears = calibration is not None and calibration.stops_early(relevant)
    if first is None or chat.context is None or not (early_stop or clears):
        return frozenset()
    return frozenset((*CELLS, *LEFT_OUT)) - {first} - frozenset(options.probes or ())


def _stages(
    views: tuple[View, ...], later: frozenset[str], *, early_stop: bool, constrained: bool
) -> tuple[tuple[str, ...], ...]:
    """The names of the views by stage. Only the first stage may be empty. If a policy corrects answers, the
    view without either modality comes last: it cannot change an answer that is flagged already.
    """
    last = later & {PRIOR} if early_stop else frozenset[str]()
    if constrained:
        return (tuple(view.name for view in views if view.name not in (*CELLS, *LEFT_OUT)),)
    names = [view.name for view in views]
    first = tuple(name for name in names if name not in later)
    second = tuple(name for name in names if name in later - last)
    third = tuple(name for name in names if name in last)
    return (first, *(stage for stage in (second, third) if stage))


def _probe_names(
    chat: Chat, options: ModintOptions, config: GuardConfig, makers: Mapping[str, Any]
) -> tuple[str, ...]:
    """The cells of this request, the other probes that it asks for, and the views that leave out one picture
    of several. Raises RequestError for an unknown probe and for too many of those that are asked for.
    """
    cells = CELLS if chat.context is not None else (NEUTRAL_IMAGE,)
    asked = options.probes or ()
    for name in asked:
        if name not in makers:
            raise _unknown_probe(name, tuple(makers))
    names = (*cells, *(name for name in asked if name not in CELLS))
    if len(names) > config.max_probes:
        raise RequestError(
            f"`modint.probes` comes to {len(names)} probes, the limit is {config.max_probes}.",
            param="modint.probes",
            code="too_many_probes",
        )
    return (*names, *(name for name in _left_out(chat) if name not in names))


def _left_out(chat: Chat) -> tuple[str, ...]:
    """The views that leave one picture out; none for a single picture, and for too many."""
    return LEFT_OUT[: len(chat.images)] if 1 < len(chat.images) <= len(LEFT_OUT) else ()


def _token_options(body: JSON) -> TokenOptions:
    top = body.get("top_logprobs") or 0
    if isinstance(top, bool) or not isinstance(top, int) or top < 0:
        raise RequestError("`top_logprobs` must be a whole number, 0 or more.", param="top_logprobs")
    return TokenOptions(bool(body.get("logprobs")), top, bool(body.get("return_token_ids")))


def _unknown_probe(name: str, known: tuple[str, ...]) -> RequestError:
    near = nearest(name[:40], known)
    return RequestError(
        f"`modint.probes` names {name[:40]!r}, which is no probe here: did you mean {near!r}?",
        param="modint.probes",
        code="unknown_probe",
    )
