"""What is deployed: overlays rendered and checked, images without root, every setting and route that exists.

Nothing here runs a container or a cluster: that was not possible where the project was built.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.dashboards.boards import metrics_of
from tests.deploy.manifests import (
    ASSERTIONS,
    CUSTOM,
    DEPLOY,
    KUBERNETES,
    KUSTOMIZE,
    NO_KUBECTL,
    OVERLAYS,
    RenderError,
    copied,
    known_metrics,
    main,
    of_kind,
    pods,
    problems,
    rendered,
    routes,
    settings,
)

ROOT = DEPLOY.parent
JSON = dict[str, Any]
overlays = pytest.mark.parametrize("overlay", OVERLAYS)
kubectl = pytest.mark.needs("kubernetes-client")


@cache
def once(overlay: str) -> list[JSON]:
    return rendered(KUSTOMIZE / "overlays" / overlay)


def objects(overlay: str) -> list[JSON]:
    """Copies: a test may spoil them."""
    return deepcopy(once(overlay))


@kubectl
@overlays
def test_nothing_is_wrong_with_an_overlay(overlay: str) -> None:
    assert problems(objects(overlay)) == []


@kubectl
def test_the_checks_say_what_they_held_and_what_no_schema_was_had_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(OVERLAYS)
    assert lines[2].endswith("not schema-checked: PrometheusRule, ScaledObject, ServiceMonitor")
    assert {path.stem for path in tmp_path.iterdir()} == set(OVERLAYS)


# Each check finds what it is for: one thing is spoilt, and it alone is told.


def container(found: list[JSON], name: str = "gateway") -> JSON:
    (spec,) = (spec for pod, _, spec in pods(found) if pod == name)
    one: JSON = spec["containers"][0]
    return one


def named(found: list[JSON], kind: str, name: str) -> JSON:
    (one,) = (one for one in of_kind(found, kind) if one["metadata"]["name"] == name)
    return one


def _no_such_namespace(found: list[JSON]) -> None:
    named(found, "Service", "gateway")["metadata"]["namespace"] = "default"


def _selector(found: list[JSON]) -> None:
    named(found, "Service", "gateway")["spec"]["selector"] = {"app": "gate"}


def _port(found: list[JSON]) -> None:
    named(found, "Service", "gateway")["spec"]["ports"][0]["targetPort"] = "https"


def _probe(found: list[JSON]) -> None:
    container(found)["readinessProbe"]["httpGet"]["path"] = "/ready"


def _engines_probe(found: list[JSON]) -> None:
    container(found, "vllm")["livenessProbe"]["httpGet"]["path"] = "/healthz"


def _setting(found: list[JSON]) -> None:
    container(found)["env"].append({"name": "MODINT_MAX_INFLIGHT", "value": "9"})


def _flag(found: list[JSON]) -> None:
    container(found)["args"].append("--workers")


def _root(found: list[JSON]) -> None:
    (spec,) = (spec for pod, _, spec in pods(found) if pod == "gateway")
    spec["securityContext"]["runAsUser"] = 0


def _writable(found: list[JSON]) -> None:
    container(found)["securityContext"]["readOnlyRootFilesystem"] = False


def _service_links(found: list[JSON]) -> None:
    (spec,) = (spec for pod, _, spec in pods(found) if pod == "vllm")
    del spec["enableServiceLinks"]


def _quantity(found: list[JSON]) -> None:
    container(found)["resources"]["limits"]["memory"] = "1 Gi"


def _unmounted(found: list[JSON]) -> None:
    container(found)["volumeMounts"].pop()


def _latest(found: list[JSON]) -> None:
    container(found)["image"] = "modint-guard:latest"


def _reachable(found: list[JSON]) -> None:
    named(found, "NetworkPolicy", "vllm")["spec"]["ingress"][0]["from"] = [{"podSelector": {}}]


def _undenied(found: list[JSON]) -> None:
    named(found, "NetworkPolicy", "default-deny")["spec"]["policyTypes"] = ["Ingress"]


def _key(found: list[JSON]) -> None:
    container(found)["env"].append({"name": "MODINT_API_KEYS", "value": "hush"})


def _key_file(found: list[JSON]) -> None:
    container(found)["env"][0]["value"] = "/etc/keys"


def _budget(found: list[JSON]) -> None:
    named(found, "PodDisruptionBudget", "gateway")["spec"]["minAvailable"] = 2


def _scaler(found: list[JSON]) -> None:
    named(found, "ScaledObject", "gateway")["spec"]["maxReplicaCount"] = 1


def _scaled_by(found: list[JSON]) -> None:
    trigger = named(found, "ScaledObject", "gateway")["spec"]["triggers"][0]["metadata"]
    trigger["query"] = "sum(modint_in_flight)"


def _page(found: list[JSON]) -> None:
    endpoint = named(found, "ServiceMonitor", "modint-guard")["spec"]["endpoints"][1]
    endpoint["path"], endpoint["relabelings"] = "/engine", []


def _rules(found: list[JSON]) -> None:
    named(found, "PrometheusRule", "modint-guard")["spec"]["groups"].pop()


SPOILT: tuple[tuple[Callable[[list[JSON]], None], str], ...] = (
    (_no_such_namespace, "Service gateway lies in namespace default"),
    (_selector, "Service gateway selects {'app': 'gate'}, and no pod has these labels"),
    (_port, "Service gateway leads to port 'https', which no pod has"),
    (_probe, "gateway's readinessProbe asks for /ready, which is no route of it"),
    (_engines_probe, "vllm's livenessProbe asks for /healthz, which is no route of it"),
    (_setting, "MODINT_MAX_INFLIGHT is no setting of the gateway"),
    (_flag, "--workers is no option of modint-guard serve"),
    (_root, "gateway may run as root"),
    (_writable, "gateway may write to its root file system"),
    (_service_links, "vllm is given variables named after Services"),
    (_quantity, "Deployment gateway: memory '1 Gi' is no quantity, such as 2, 500m or 4Gi"),
    (_unmounted, "gateway does not mount exactly the volumes that it has"),
    (_latest, "gateway's image modint-guard:latest has no version"),
    (_reachable, "vLLM's routes for loading adapters are reachable for others than the gateway"),
    (_undenied, "nothing denies what no policy names"),
    (_key, "gateway has a key in MODINT_API_KEYS: mount a file and name it in MODINT_API_KEYS_FILE"),
    (_key_file, "gateway's MODINT_API_KEYS_FILE lies in no volume"),
    (_budget, "PodDisruptionBudget gateway keeps 2 of 2: none can be drained, or all"),
    (_scaler, "ScaledObject gateway goes from 2 to 1, but there are 2 to begin with"),
    (_scaled_by, "ScaledObject gateway follows ['modint_in_flight'], which the gateway does not count"),
    (_page, "ServiceMonitor modint-guard scrapes /engine, which is no route of the gateway"),
    (_rules, "PrometheusRule modint-guard is not deploy/rules/modint.yml: run `make generated`"),
)


@kubectl
@pytest.mark.parametrize(("spoil", "said"), SPOILT, ids=lambda one: getattr(one, "__name__", "").strip("_"))
def test_what_is_spoilt_is_told(spoil: Callable[[list[JSON]], None], said: str) -> None:
    found = objects("restricted")
    spoil(found)
    assert said in problems(found)


@kubectl
def test_every_assertion_has_something_spoilt_for_it() -> None:
    told = set()
    for spoil, _ in SPOILT:
        found = objects("restricted")
        spoil(found)
        told |= {check.__name__ for check in ASSERTIONS if list(check(found))}
    assert told == {check.__name__ for check in ASSERTIONS}


# Values that cannot be, as an operator would write them into an overlay.


def changed(folder: Path, overlay: str, *pairs: tuple[str, str]) -> Path:
    """A copy of deploy/kustomize in which some text of an overlay is another; the overlay's folder."""
    shutil.copytree(KUSTOMIZE, folder / "kustomize")
    there = folder / "kustomize" / "overlays" / overlay
    for old, new in pairs:
        held = [path for path in there.iterdir() if old in path.read_text("utf-8")]
        assert held, old
        for path in held:
            path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    return there


@kubectl
def test_a_patch_of_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    overlay = changed(tmp_path, "ha", ("path: /spec/replicas", "path: /spec/nowhere/x"))
    with pytest.raises(RenderError, match="nowhere"):
        rendered(overlay)


@kubectl
@pytest.mark.parametrize(
    ("overlay", "old", "new", "said"),
    [
        ("cpu-dev", "memory: 6Gi", "memory: six", "'six'"),
        ("gpu", "replicas: 1", "replicas: one", "'one' is not of type"),
        ("restricted", 'pods: "16"', "pods: many", "'many'"),
        ("gpu", "startupProbe:", "startUpProbe:", "'startUpProbe' was unexpected"),
        ("cpu-dev", "--adapter, robust-lora", "--adaptor, robust-lora", "--adaptor is no option"),
    ],
)
def test_an_overlay_with_a_value_that_cannot_be_is_told(
    tmp_path: Path, overlay: str, old: str, new: str, said: str
) -> None:
    told = problems(rendered(changed(tmp_path, overlay, (old, new))))
    assert told and said in told[0]


def test_without_kubectl_one_sentence_says_so_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(tmp_path / "rendered") == 1
    assert capsys.readouterr().err == f"cpu-dev: {NO_KUBECTL}\n"


def test_a_kubectl_without_kustomize_is_the_same_to_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "kubectl"
    old.write_text("#!/bin/sh\necho 'error: unknown command \"kustomize\"' >&2\nexit 1\n", "utf-8")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RenderError, match="apt-get install kubernetes-client"):
        rendered(KUSTOMIZE / "overlays" / "ha")


# What each overlay is for


@kubectl
def test_several_gateways_and_engines_outlive_a_drained_node() -> None:
    found = objects("ha")
    replicas = {one["metadata"]["name"]: one["spec"]["replicas"] for one in of_kind(found, "Deployment")}
    assert min(replicas["gateway"], replicas["vllm"]) >= 2
    assert {one["metadata"]["name"] for one in of_kind(found, "PodDisruptionBudget")} == set(replicas)


@kubectl
def test_the_autoscaler_without_keda_fits_in_its_place(tmp_path: Path) -> None:
    overlay = changed(tmp_path, "ha", ("scaledobject.yaml, ", "hpa.yaml, "))
    found = rendered(overlay)
    assert problems(found) == []
    (scaler,) = of_kind(found, "HorizontalPodAutoscaler")
    (pod,) = (one["pods"] for one in scaler["spec"]["metrics"] if one["type"] == "Pods")
    adapter = yaml.safe_load((KUSTOMIZE / "overlays/ha/prometheus-adapter.yaml").read_text("utf-8"))
    (rule,) = adapter["rules"]["custom"]
    assert rule["name"]["as"] == pod["metric"]["name"]
    assert metrics_of(rule["seriesQuery"]) <= known_metrics()


@kubectl
def test_both_autoscalers_at_once_are_told(tmp_path: Path) -> None:
    overlay = changed(tmp_path, "ha", ("scaledobject.yaml, ", "scaledobject.yaml, hpa.yaml, "))
    (said,) = problems(rendered(overlay))
    assert said.endswith("pull at the same pods: take one")


@kubectl
def test_the_strictest_overlay_enforces_kubernetes_own_standard() -> None:
    (namespace,) = of_kind(objects("restricted"), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@kubectl
def test_only_kinds_that_have_no_schema_go_without() -> None:
    for one in [one for overlay in OVERLAYS for one in objects(overlay)]:
        if one["kind"] in CUSTOM:
            with pytest.raises(kubernetes_validate.SchemaNotFoundError):
                kubernetes_validate.validate(one, KUBERNETES, strict=True)


# What others' checkers say


def test_yamllint_has_nothing_to_say() -> None:
    command = [sys.executable, "-m", "yamllint", "--strict", "-c", str(DEPLOY / "yamllint.yml"), str(DEPLOY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [str(hadolint), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_every_check_that_checkov_leaves_out_has_a_reason() -> None:
    """`make deploy-check` runs it, in an environment of its own: its pins are not ours."""
    held = (DEPLOY / "checkov.yaml").read_text("utf-8")
    left_out = re.findall(r"^  - (CKV\w+)(?: # (.+))?$", held, re.MULTILINE)
    assert [name for name, _ in left_out] == yaml.safe_load(held)["skip-check"]
    assert [name for name, reason in left_out if len(reason.split()) < 5] == []
    # In bytes: Python keeps what it compiled of the dashboards there.
    inline = [path for path in DEPLOY.rglob("*") if path.is_file() and b"checkov:skip" in path.read_bytes()]
    assert inline == []


# compose, images, systemd, Grafana


def test_compose_refuses_what_is_not_set_and_mounts_what_exists() -> None:
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    assert all(":?" in variable for variable in re.findall(r"\$\{[^}]+\}", text))
    services = yaml.safe_load(text)["services"]
    mounts = [volume.split(":")[0] for one in services.values() for volume in one.get("volumes", ())]
    assert [path for path in mounts if path.startswith("./") and not (DEPLOY / path).exists()] == []
    assert set(services["gateway"]["environment"]) <= settings()
    assert all(re.search(r":v?\d+\.\d+", one["image"]) for one in services.values())
    assert services["vllm"]["networks"] == ["engine"] and "ports" not in services["vllm"]


def test_what_was_measured_on_a_model_outlives_the_process_that_measured_it() -> None:
    file = "/var/lib/modint-guard/nulls.json"
    gateway = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["gateway"]
    assert gateway["environment"]["MODINT_NULL_FILE"] == file
    assert f"state:{Path(file).parent}" in gateway["volumes"] and gateway["read_only"]
    owned = re.search(
        r"install --directory --owner=modint \S+ (\S+)", (DEPLOY / "Dockerfile").read_text("utf-8")
    )
    assert owned and owned[1] == str(Path(file).parent)  # a new volume has the owner of what it covers
    pod = yaml.safe_load_all((DEPLOY / "kustomize" / "base" / "gateway.yaml").read_text("utf-8"))
    spec = next(one for one in pod if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert {"name": "MODINT_NULL_FILE", "value": file} in container["env"]
    assert {"name": "state", "mountPath": str(Path(file).parent)} in container["volumeMounts"]
    assert "state" in {volume["name"] for volume in spec["volumes"]}
    unit = (DEPLOY / "systemd" / "modint-guard.service").read_text("utf-8")
    assert "\nStateDirectory=modint-guard\nEnvironment=MODINT_NULL_FILE=%S/modint-guard/nulls.json\n" in unit


def test_composes_prometheus_asks_the_same_as_the_other() -> None:
    ours, theirs = (
        yaml.safe_load((DEPLOY / name).read_text("utf-8"))
        for name in ("prometheus.yml", "prometheus-compose.yml")
    )
    replaced = json.loads(json.dumps(ours).replace("127.0.0.1:8080", "gateway:8080"))
    assert replaced == theirs


def stages() -> dict[str, tuple[str, str]]:
    """Name -> (what it is built from, its lines) of each stage of the Dockerfile."""
    parts = re.split(r"^FROM ", (DEPLOY / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)[1:]
    heads = [part.split("\n", 1)[0].split(" AS ") for part in parts]
    return {name: (base, part) for (base, name), part in zip(heads, parts, strict=True)}


def inherited(name: str) -> str:
    """The lines of a stage and of those that it is built from."""
    base, lines = stages()[name]
    return (inherited(base) if base in stages() else "") + lines


def test_every_image_is_built_on_one_pinned_one() -> None:
    bases = {base for base, _ in stages().values() if base not in stages()}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases.pop())


@pytest.mark.parametrize("image", ["server", "cpu", "train"])
def test_no_image_runs_as_root_carries_the_build_along_or_keeps_silent_on_its_health(image: str) -> None:
    lines = inherited(image)
    assert re.findall(r"^USER (.*)$", lines, re.MULTILINE)[-1] == "10001:10001"
    assert "pip install" not in lines and f"COPY --from=build-{image} " in lines
    assert "HEALTHCHECK" in lines
    assert set(re.findall(r"8080(/\w+)'", lines)) <= routes()


def test_what_the_build_copies_is_in_its_context() -> None:
    """`test_wheel` builds the package of it."""
    sent = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()}
    assert copied() <= sent and all((ROOT / name).exists() for name in copied())


def test_the_systemd_unit_names_settings_that_exist_and_does_not_restart_what_is_misconfigured() -> None:
    text = (DEPLOY / "systemd" / "modint-guard.service").read_text("utf-8")
    assert set(re.findall(r"^Environment=(MODINT_\w+)", text, re.MULTILINE)) <= settings()
    assert "RestartPreventExitStatus=2" in text and "DynamicUser=yes" in text


def test_grafana_finds_the_dashboards_where_compose_puts_them() -> None:
    provider = yaml.safe_load((DEPLOY / "grafana" / "dashboards" / "modint.yml").read_text("utf-8"))[
        "providers"
    ][0]
    mounts = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["grafana"]["volumes"]
    assert f"./dashboards:{provider['options']['path']}:ro" in mounts
