"""What `make deploy-check` asks of Docker Compose, by programs that answer as it may."""

from pathlib import Path

import pytest

from tests.deploy.compose import main, needed, problems


def program(folder: Path, script: str) -> Path:
    path = folder / "docker-compose"
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(0o755)
    return path


def test_three_variables_have_to_be_set_and_each_says_to_what() -> None:
    assert set(needed()) == {"MODEL", "API_KEYS_FILE", "GRAFANA_PASSWORD_FILE"}
    assert all(sentence.startswith(f"set {name} to ") for name, sentence in needed().items())


def test_a_compose_that_refuses_what_is_missing_is_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complaint = "required variable {} is missing a value: {}"
    said = "".join(
        f'[ -n "${name}" ] || {{ echo "{complaint.format(name, sentence)}" >&2; exit 1; }}\n'
        for name, sentence in needed().items()
    )
    assert main(program(tmp_path, said)) == 0
    assert capsys.readouterr().out == f"compose: accepted; refused without {', '.join(needed())}\n"


def test_what_is_accepted_without_a_variable_is_told(tmp_path: Path) -> None:
    assert list(problems(program(tmp_path, "exit 0"))) == [
        f"it is accepted without {name}" for name in needed()
    ]


def test_what_is_refused_with_every_variable_is_told(tmp_path: Path) -> None:
    told = list(problems(program(tmp_path, "echo no such key >&2; exit 1")))
    assert told[0] == "with every variable set it is refused: no such key"
    assert told[1] == "without MODEL it does not say so: no such key"
