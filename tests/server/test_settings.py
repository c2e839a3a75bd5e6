"""Settings: read once, frozen, and a bad one is a sentence."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from modint_guard.errors import ConfigError
from modint_server.request.keys import Keys
from modint_server.settings import load_settings, secret


def test_the_environment_is_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODINT_MAX_BODY_BYTES", "1000")
    monkeypatch.setenv("MODINT_MAX_IMAGES", "3")
    settings = load_settings(max_images=5)
    assert (settings.max_body_bytes, settings.max_images) == (1000, 5)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings().max_images = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_images": 0}, "max_images: Input should be greater than 0"),
        ({"probe_deadline_s": 61}, "probe_deadline_s: Input should be less than or equal to 60"),
        ({"image_attention": 10.5}, "image_attention: Input should be less than or equal to 10"),
        ({"image_attention": -0.5}, "image_attention: Input should be greater than or equal to 0"),
        ({"max_json_depth": 251}, "max_json_depth: Input should be less than or equal to 250"),
        ({"max_imagse": 1}, "did you mean max_images?"),
        ({"upstream_url": "localhost"}, "upstream_url: must be an address such as"),
        ({"upstream_url": "http://me:secret@host"}, "must hold no user, password"),
        ({"guard": "maybe"}, "guard: Input should be 'on' or 'off'"),
    ],
)
def test_a_bad_setting_is_one_sentence_without_its_value(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")) as refused:
        load_settings(**wrong)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_variable_of_ours_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODINT_MAX_IMAGSE", "3")
    with pytest.raises(ConfigError, match=r"MODINT_MAX_IMAGSE .* did you mean MODINT_MAX_IMAGES\?"):
        load_settings()


def test_the_folder_of_fetched_models_is_no_setting_of_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODINT_CACHE", "anywhere")
    load_settings()


SERVICE_LINKS = {
    "MODINT_SERVICE_HOST": "10.96.0.7",
    "MODINT_SERVICE_PORT": "8080",
    "MODINT_SERVICE_PORT_HTTP": "8080",
    "MODINT_PORT": "tcp://10.96.0.7:8080",
    "MODINT_PORT_8080_TCP": "tcp://10.96.0.7:8080",
    "MODINT_PORT_8080_TCP_PROTO": "tcp",
    "MODINT_PORT_8080_TCP_PORT": "8080",
    "MODINT_PORT_8080_TCP_ADDR": "10.96.0.7",
    "MODINT_GUARD_SERVICE_HOST": "10.96.0.8",
    "MODINT_GUARD_PORT": "udp://10.96.0.8:53",
    "MODINT_GUARD_PORT_53_UDP_ADDR": "10.96.0.8",
}


def test_variables_that_kubernetes_writes_for_services_are_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    assert load_settings().guard == "on"


@pytest.mark.parametrize(("name", "value"), [("MODINT_PORT", "8080"), ("MODINT_SERVICE", "x")])
def test_what_only_looks_like_a_service_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} is no setting of the gateway"):
        load_settings()


def test_a_url_may_end_in_v1() -> None:
    assert load_settings(upstream_url="http://host:8000/v1/").upstream_url == "http://host:8000"


def test_keys_come_from_files_or_settings_and_are_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("hush\n", "utf-8")
    assert secret(None, file) == "hush"
    assert secret(SecretStr("a"), None) == "a"
    settings = load_settings(api_keys="first-key, second-key", api_keys_file=file)
    keys = Keys(settings)
    for key in ("first-key", "second-key", "hush"):
        assert keys.check({"authorization": f"Bearer {key}"}).name == ""
    assert "first-key" not in repr(settings)


def test_a_key_file_without_a_key_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# none\n", "utf-8")
    with pytest.raises(ConfigError, match="holds no key"):
        Keys(load_settings(api_keys_file=tmp_path / "empty"))
    with pytest.raises(ConfigError, match="holds 0 lines"):
        secret(None, tmp_path / "empty")
    with pytest.raises(ConfigError, match="cannot be read"):
        secret(None, tmp_path / "missing")
