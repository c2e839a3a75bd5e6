"""What is deployed: overlays rendered and checked, images without root, every setting and route that exists.

Nothing here runs a container or a cluster: that was not possible where the project was built.
"""

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from modint_server.app import create_app
from modint_server.commands import serve
from modint_server.settings import ENV_PREFIX, Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
OVERLAYS = ("cpu-dev", "gpu", "ha", "restricted")
JSON = dict[str, Any]
overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def rendered(folder: Path) -> list[JSON]:
    if shutil.which("kubectl") is None:
        pytest.fail("kubectl was not found, and nothing else here renders the overlays: install it")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(done.stderr)
    return list(yaml.safe_load_all(done.stdout))


@cache
def objects(overlay: str) -> list[JSON]:
    return rendered(DEPLOY / "kustomize" / "overlays" / overlay)


def kind(found: list[JSON], name: str) -> list[JSON]:
    return [one for one in found if one["kind"] == name]


def pods(found: list[JSON]) -> list[tuple[str, JSON, JSON]]:
    """(name, labels, spec) of every Deployment's pods."""
    templates = [(one["metadata"]["name"], one["spec"]["template"]) for one in kind(found, "Deployment")]
    return [(name, template["metadata"]["labels"], template["spec"]) for name, template in templates]


def routes() -> set[str]:
    return {str(getattr(route, "path", "")) for route in create_app(Settings()).routes}


def settings() -> set[str]:
    return {ENV_PREFIX + name.upper() for name in Settings.model_fields}


@overlays
def test_everything_lies_in_one_namespace(overlay: str) -> None:
    found = objects(overlay)
    assert {one["metadata"].get("namespace") for one in found if one["kind"] != "Namespace"} == {
        "modint-guard"
    }


@overlays
def test_selectors_match_the_pods_they_mean(overlay: str) -> None:
    found = objects(overlay)
    labels = [pod_labels for _, pod_labels, _ in pods(found)]
    selectors = [one["spec"]["selector"] for one in kind(found, "Service")]
    selectors += [one["spec"]["selector"]["matchLabels"] for one in kind(found, "Deployment")]
    selectors += [one["spec"]["selector"]["matchLabels"] for one in kind(found, "PodDisruptionBudget")]
    for selector in selectors:
        assert any(selector.items() <= one.items() for one in labels), selector


@overlays
def test_services_lead_to_ports_that_exist(overlay: str) -> None:
    found = objects(overlay)
    ports = {port["name"] for _, _, spec in pods(found) for port in spec["containers"][0]["ports"]}
    assert {port["targetPort"] for one in kind(found, "Service") for port in one["spec"]["ports"]} <= ports


@overlays
def test_the_gateways_probes_point_at_its_routes(overlay: str) -> None:
    (spec,) = (spec for name, _, spec in pods(objects(overlay)) if name == "gateway")
    container = spec["containers"][0]
    asked = {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")}
    assert asked == {"/livez", "/readyz"} and asked <= routes()


@overlays
def test_every_setting_and_flag_of_the_gateway_exists(overlay: str) -> None:
    (spec,) = (spec for name, _, spec in pods(objects(overlay)) if name == "gateway")
    container = spec["containers"][0]
    assert {one["name"] for one in container.get("env", ())} <= settings()
    flags = {word.removeprefix("--").replace("-", "_") for word in container["args"] if word.startswith("--")}
    assert container["args"][0] == "serve" and flags <= set(serve.__annotations__)


@overlays
def test_no_pod_runs_as_root_or_writes_to_its_root(overlay: str) -> None:
    for name, _, spec in pods(objects(overlay)):
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0, (
            name
        )
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True and context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


@overlays
def test_every_mount_has_its_volume_and_every_image_a_version(overlay: str) -> None:
    for _, _, spec in pods(objects(overlay)):
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert re.search(r":v?\d+\.\d+", container["image"])


@overlays
def test_nothing_is_reachable_that_is_not_named(overlay: str) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in kind(objects(overlay), "NetworkPolicy")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (into_vllm,) = policies["vllm"]["ingress"]  # its adapter routes are the gateway's alone
    assert into_vllm["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}]


@pytest.mark.parametrize("overlay", ["gpu", "ha", "restricted"])
def test_keys_come_from_files(overlay: str) -> None:
    (spec,) = (spec for name, _, spec in pods(objects(overlay)) if name == "gateway")
    container = spec["containers"][0]
    (file,) = (one["value"] for one in container["env"] if one["name"] == "MODINT_API_KEYS_FILE")
    assert any(file.startswith(mount["mountPath"] + "/") for mount in container["volumeMounts"])
    assert not [
        one for one in container["env"] if one["name"] in ("MODINT_API_KEYS", "MODINT_UPSTREAM_API_KEY")
    ]


def test_several_gateways_outlive_a_drained_node() -> None:
    found = objects("ha")
    (deployment,) = (one for one in kind(found, "Deployment") if one["metadata"]["name"] == "gateway")
    (budget,) = kind(found, "PodDisruptionBudget")
    assert deployment["spec"]["replicas"] > budget["spec"]["minAvailable"] >= 1
    (scaled,) = kind(found, "ScaledObject")
    assert scaled["spec"]["minReplicaCount"] == deployment["spec"]["replicas"]
    assert scaled["spec"]["triggers"][0]["metadata"]["query"] == "sum(modint_requests_in_flight)"


def test_prometheus_finds_the_gateway_under_the_job_that_the_rules_name() -> None:
    found = objects("ha")
    (monitor,) = kind(found, "ServiceMonitor")
    (service,) = (one for one in kind(found, "Service") if one["metadata"]["name"] == "gateway")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "modint-guard"
    (rule,) = kind(found, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((DEPLOY / "rules" / "modint.yml").read_text("utf-8"))


def test_the_strictest_overlay_enforces_kubernetes_own_standard() -> None:
    (namespace,) = kind(objects("restricted"), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_an_overlay_with_a_value_that_cannot_be_is_refused(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "kustomize", tmp_path / "kustomize")
    overlay = tmp_path / "kustomize" / "overlays" / "ha"
    text = (overlay / "kustomization.yaml").read_text("utf-8")
    (overlay / "kustomization.yaml").write_text(
        text.replace("path: /spec/replicas", "path: /spec/nowhere/x"), "utf-8"
    )
    with pytest.raises(ValueError, match="nowhere"):
        rendered(overlay)


# What others' checkers say

CUSTOM = {
    "ScaledObject",
    "ServiceMonitor",
    "PrometheusRule",
}  # of operators: in no schema that is to be had here


@overlays
def test_core_kinds_fit_kubernetes_own_schemas(overlay: str) -> None:
    for one in objects(overlay):
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, "1.29", strict=True)


def test_the_autoscaler_by_cpu_fits_its_schema_too() -> None:
    hpa = yaml.safe_load((DEPLOY / "kustomize/overlays/ha/hpa.yaml").read_text("utf-8"))
    kubernetes_validate.validate(hpa, "1.29", strict=True)
    assert hpa["spec"]["scaleTargetRef"]["name"] == "gateway"


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


def test_composes_prometheus_asks_the_same_as_the_other() -> None:
    ours, theirs = (
        yaml.safe_load((DEPLOY / name).read_text("utf-8"))
        for name in ("prometheus.yml", "prometheus-compose.yml")
    )
    replaced = json.loads(json.dumps(ours).replace("127.0.0.1:8080", "gateway:8080"))
    assert replaced == theirs


def test_no_image_runs_as_root_and_each_says_whether_it_is_well() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    final = {stage.split()[2]: stage for stage in stages if stage.split()[2] in ("server", "cpu", "train")}
    assert set(final) == {"server", "cpu", "train"}
    (runtime,) = (stage for stage in stages if stage.split()[2] == "runtime")
    for stage in final.values():
        assert "USER 10001" in (stage if stage.startswith("${PYTHON}") else runtime)
        assert "HEALTHCHECK" in stage
    assert set(re.findall(r"8080(/\w+)'", text)) <= routes()
    assert re.search(r"^ARG PYTHON=python:3\.\d+\.\d+-", text, re.MULTILINE)


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
