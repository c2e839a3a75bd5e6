"""Policies: their files, and what of them is refused."""

from pathlib import Path

import pytest

from modint_guard.errors import ConfigError
from modint_guard.mitigation.policy import Policy, abstention, policy_for, read_policies
from modint_guard.report import Report, Verdict
from modint_guard.types import ACTIONS, RungOutcome, State

FILE = """
[[policy]]
action = "ladder"
model = "llava-*"
order = ["neutralise", "escalate"]
otherwise = "abstain"
stream = "release"
deadline_s = 3
early_stop = false

[[policy]]
action = "abstain"
abstain_as = "error"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "policies.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_file_holds_policies_in_order(tmp_path: Path) -> None:
    ladder = Policy(
        "ladder",
        model="llava-*",
        order=("neutralise", "escalate"),
        otherwise="abstain",
        stream="release",
        deadline_s=3,
        early_stop=False,
    )
    assert read_policies(written(tmp_path, FILE)) == (ladder, Policy("abstain", abstain_as="error"))


def test_the_first_that_fits_decides_and_a_request_changes_its_action_alone(tmp_path: Path) -> None:
    policies = read_policies(written(tmp_path, FILE))
    assert policy_for(policies, "llava-7b", "How many?", None) is policies[0]
    assert policy_for(policies, "qwen", "How many?", None) is policies[1]
    changed = policy_for(policies, "llava-7b", "How many?", "debias")
    assert (changed.action, changed.order, changed.stream) == ("debias", (), "release")
    assert policy_for((), "m", "q", None) == Policy()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold \\[\\[policy\\]\\] tables"),
        ("[[rule]]\naction = 'ladder'", "must hold \\[\\[policy\\]\\] tables"),
        ("[[policy]]\nactoin = 'ladder'", "policy 1: 'actoin' is not a key"),
        ("[[policy]]\naction = 'pray'", "policy 1: action is 'pray': it must be one of annotate"),
        ("[[policy]]\naction = 3", "policy 1: action must be a string"),
        ("[[policy]]\nmax_tokens = 1.5", "max_tokens must be a whole number"),
        ("[[policy]]\nmax_tokens = true", "max_tokens must be a whole number"),
        ("[[policy]]\nearly_stop = 1", "early_stop must be true or false"),
        ("[[policy]]\nmax_tokens = -1", "max_tokens is -1: it must lie between 0"),
        ("[[policy]]\ndeadline_s = 'soon'", "deadline_s must be a number"),
        ("[[policy]]\ndeadline_s = 0", "deadline_s is 0: it must lie between 0.001"),
        ("[[policy]]\naccept_at = 2", "accept_at is 2"),
        ("[[policy]]\ncandidates = 5", "candidates is 5: it must lie between 2 and 4"),
        ("[[policy]]\norder = 'neutralise'", "order must be a list of strings"),
        ("[[policy]]\naction = 'ladder'\norder = ['hope']", "order names 'hope'"),
        ("[[policy]]\naction = 'ladder'\norder = ['debias', 'debias']", "a rung twice"),
        ("[[policy]]\naction = 'debias'\norder = ['debias']", "order belongs to the action ladder"),
        ("[[policy]]\nstream = 'drip'", "stream is 'drip'"),
        ("[[policy]]\nabstain_as = '500'", "abstain_as is '500'"),
        ("[[policy]]\notherwise = 'guess'", "otherwise is 'guess'"),
        ("[[policy]]\nquestion = '('", "question '\\(' is not a regular expression"),
        ("policy = [3]", "policy 1: it must be a table"),
        ("[[policy]", "is not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_with_its_place_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_policies(written(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_policies(tmp_path / "none.toml")


def test_a_modality_without_an_answer_of_its_own_is_named_as_such() -> None:
    report = Report(Verdict(State.FLAGGED), image_only="7")
    assert abstention(report).endswith('The picture alone gives "7", the text alone gives no answer.')


def test_the_page_explains_every_action_and_outcome() -> None:
    page = (Path(__file__).parents[2] / "docs" / "mitigation.md").read_text("utf-8")
    assert [name for name in (*ACTIONS, *RungOutcome) if f"`{name}`" not in page] == []
