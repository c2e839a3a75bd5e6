"""What is wrong with an overlay, in sentences: by Kubernetes' own schemas, and by assertions of ours.

`python -m tests.deploy.manifests FOLDER` renders every overlay into FOLDER, says for which kinds there is no
schema, and fails where something is wrong.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from deploy.dashboards.boards import metrics_of
from deploy.dashboards.catalogue import families
from modint_server.app import create_app
from modint_server.commands import serve
from modint_server.settings import ENV_PREFIX, Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
KUSTOMIZE = DEPLOY / "kustomize"
OVERLAYS = ("cpu-dev", "gpu", "ha", "restricted")
KUBERNETES = "1.29"
# Of operators: no schema of them is to be had here, so assertions of ours alone hold them.
CUSTOM = ("ScaledObject", "ServiceMonitor", "PrometheusRule")
NO_KUBECTL = (
    "kubectl with `kustomize` was not found, and nothing else here renders the overlays: "
    "install it (Debian: apt-get install kubernetes-client)"
)
QUANTITY = re.compile(r"\d+(\.\d+)?([mkMGTPE]|[KMGTPE]i)?")
JSON = dict[str, Any]


class RenderError(Exception):
    """An overlay that `kubectl kustomize` refuses, or no kubectl."""


def rendered(folder: Path) -> list[JSON]:
    """The objects of an overlay; raises RenderError."""
    return list(yaml.safe_load_all(text_of(folder)))


def text_of(folder: Path) -> str:
    """The overlay as `kubectl apply -k` would send it; raises RenderError."""
    if shutil.which("kubectl") is None:
        raise RenderError(NO_KUBECTL)
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RenderError(NO_KUBECTL if "unknown command" in done.stderr else done.stderr.strip())
    return done.stdout


def problems(found: list[JSON]) -> list[str]:
    """Everything that is wrong with the objects of an overlay; where a schema is broken, that alone."""
    broken = list(objects_fit_their_schemas(found))
    return broken or [said for check in ASSERTIONS for said in check(found)]


# What Kubernetes itself would refuse


def objects_fit_their_schemas(found: list[JSON]) -> Iterator[str]:
    for one in found:
        if one["kind"] in CUSTOM:
            continue
        try:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{_name(one)}: {error.message} at {'.'.join(map(str, error.path)) or 'its top'}"


# What Kubernetes would take and we did not mean


def everything_lies_in_one_namespace(found: list[JSON]) -> Iterator[str]:
    for one in found:
        if one["kind"] != "Namespace" and one["metadata"].get("namespace") != "modint-guard":
            yield f"{_name(one)} lies in namespace {one['metadata'].get('namespace')}"


def selectors_match_pods(found: list[JSON]) -> Iterator[str]:
    labels = [pod_labels for _, pod_labels, _ in pods(found)]
    for one in found:
        selector = one.get("spec", {}).get("selector")
        if one["kind"] in CUSTOM or not selector:
            continue
        wanted = selector.get("matchLabels", selector)
        if not any(wanted.items() <= pod.items() for pod in labels):
            yield f"{_name(one)} selects {wanted}, and no pod has these labels"


def services_lead_to_ports_that_exist(found: list[JSON]) -> Iterator[str]:
    ports = {port["name"] for _, _, spec in pods(found) for port in spec["containers"][0]["ports"]}
    for one in of_kind(found, "Service"):
        for port in one["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"{_name(one)} leads to port {port['targetPort']!r}, which no pod has"


def probes_point_at_routes(found: list[JSON]) -> Iterator[str]:
    known = {"gateway": routes(), "vllm": {"/health"}}
    for name, _, spec in pods(found):
        container = spec["containers"][0]
        for probe in ("livenessProbe", "readinessProbe"):
            path = container.get(probe, {}).get("httpGet", {}).get("path")
            if path not in known[name]:
                yield f"{name}'s {probe} asks for {path}, which is no route of it"


def settings_and_flags_exist(found: list[JSON]) -> Iterator[str]:
    for name, _, spec in pods(found):
        if name != "gateway":
            continue
        container = spec["containers"][0]
        for one in container.get("env", ()):
            if one["name"] not in settings():
                yield f"{one['name']} is no setting of the gateway"
        words = [word for word in container["args"] if word.startswith("--")]
        for word in words:
            if word.removeprefix("--").replace("-", "_") not in serve.__annotations__:
                yield f"{word} is no option of modint-guard serve"


def nothing_runs_as_root_or_writes_to_its_root(found: list[JSON]) -> Iterator[str]:
    for name, _, spec in pods(found):
        pod = spec.get("securityContext", {})
        if pod.get("runAsNonRoot") is not True or not pod.get("runAsUser"):
            yield f"{name} may run as root"
        if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name} has no seccomp profile"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name} is given a service account's token"
        for container in spec["containers"]:
            context = container.get("securityContext", {})
            if context.get("readOnlyRootFilesystem") is not True:
                yield f"{name} may write to its root file system"
            if context.get("allowPrivilegeEscalation") is not False:
                yield f"{name} may gain privileges"
            if context.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{name} keeps capabilities"
            if "memory" not in container.get("resources", {}).get("limits", {}):
                yield f"{name} has no limit of memory"


def no_service_becomes_a_setting(found: list[JSON]) -> Iterator[str]:
    """Kubernetes writes variables such as VLLM_PORT for every Service into every pod, unless told not to."""
    for name, _, spec in pods(found):
        if spec.get("enableServiceLinks") is not False:
            yield f"{name} is given variables named after Services"


def quantities_can_be_read(found: list[JSON]) -> Iterator[str]:
    """To the schemas they are mere texts."""
    for one in found:
        for where, value in _quantities(one):
            if not QUANTITY.fullmatch(str(value)):
                yield f"{_name(one)}: {where} {value!r} is no quantity, such as 2, 500m or 4Gi"


def mounts_have_volumes_and_images_versions(found: list[JSON]) -> Iterator[str]:
    for name, _, spec in pods(found):
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            if {mount["name"] for mount in container["volumeMounts"]} != volumes:
                yield f"{name} does not mount exactly the volumes that it has"
            if not re.search(r":v?\d+\.\d+", container["image"]):
                yield f"{name}'s image {container['image']} has no version"


def nothing_is_reachable_that_is_not_named(found: list[JSON]) -> Iterator[str]:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(found, "NetworkPolicy")}
    if policies.get("default-deny") != {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
        yield "nothing denies what no policy names"
    into_vllm = policies.get("vllm", {}).get("ingress", [])
    only = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}
    if [one["from"] for one in into_vllm] != [[only]]:
        yield "vLLM's routes for loading adapters are reachable for others than the gateway"


def keys_come_from_files(found: list[JSON]) -> Iterator[str]:
    for name, _, spec in pods(found):
        container = spec["containers"][0]
        mounts = [mount["mountPath"] + "/" for mount in container["volumeMounts"]]
        for one in container.get("env", ()):
            if one["name"] in ("MODINT_API_KEYS", "MODINT_UPSTREAM_API_KEY"):
                yield f"{name} has a key in {one['name']}: mount a file and name it in {one['name']}_FILE"
            if one["name"].endswith("_FILE") and not one["value"].startswith(tuple(mounts)):
                yield f"{name}'s {one['name']} lies in no volume"


def budgets_leave_room_to_drain_a_node(found: list[JSON]) -> Iterator[str]:
    replicas = {one["metadata"]["name"]: one["spec"]["replicas"] for one in of_kind(found, "Deployment")}
    for budget in of_kind(found, "PodDisruptionBudget"):
        name, least = budget["metadata"]["name"], budget["spec"]["minAvailable"]
        if not 1 <= least < replicas.get(name, 0):
            yield f"{_name(budget)} keeps {least} of {replicas.get(name, 0)}: none can be drained, or all"


def autoscalers_follow_what_exists(found: list[JSON]) -> Iterator[str]:
    """KEDA's ScaledObject or Kubernetes' own autoscaler: one of them, between bounds, by a metric of ours."""
    replicas = {one["metadata"]["name"]: one["spec"]["replicas"] for one in of_kind(found, "Deployment")}
    scalers = [*of_kind(found, "ScaledObject"), *of_kind(found, "HorizontalPodAutoscaler")]
    if len(scalers) > 1:
        yield f"{' and '.join(map(_name, scalers))} pull at the same pods: take one"
    for one in scalers:
        spec = one["spec"]
        least = spec.get("minReplicaCount", spec.get("minReplicas"))
        most = spec.get("maxReplicaCount", spec.get("maxReplicas"))
        scaled = spec["scaleTargetRef"]["name"]
        if scaled not in replicas:
            yield f"{_name(one)} scales {scaled}, which does not exist"
        elif not replicas[scaled] <= least <= most:
            yield f"{_name(one)} goes from {least} to {most}, but there are {replicas[scaled]} to begin with"
        asked = {name for text in _texts(one) for name in metrics_of(text)}
        if not asked or asked - known_metrics():
            yield f"{_name(one)} follows {sorted(asked) or 'nothing'}, which the gateway does not count"


def custom_resources_say_what_they_mean(found: list[JSON]) -> Iterator[str]:
    services = {one["metadata"]["name"]: one for one in of_kind(found, "Service")}
    pages = {path for path in routes() if path.endswith("/metrics")}
    for monitor in of_kind(found, "ServiceMonitor"):
        service, spec = services["gateway"], monitor["spec"]
        if not spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items():
            yield f"{_name(monitor)} selects no service"
        jobs = {}
        for endpoint in spec["endpoints"]:
            if endpoint["port"] not in {port["name"] for port in service["spec"]["ports"]}:
                yield f"{_name(monitor)} scrapes port {endpoint['port']!r}, which the service has not"
            if endpoint["path"] not in pages:
                yield f"{_name(monitor)} scrapes {endpoint['path']}, which is no route of the gateway"
            set_by_hand = {one["targetLabel"]: one["replacement"] for one in endpoint.get("relabelings", ())}
            jobs[endpoint["path"]] = set_by_hand.get(
                "job", service["metadata"]["labels"].get(spec["jobLabel"])
            )
        if jobs != {"/metrics": "modint-guard", "/engine/metrics": "vllm"}:
            yield f"{_name(monitor)} makes the jobs {jobs}, and rules and dashboards know others"
    rules = yaml.safe_load((DEPLOY / "rules" / "modint.yml").read_text("utf-8"))
    for rule in of_kind(found, "PrometheusRule"):
        if rule["spec"] != rules:
            yield f"{_name(rule)} is not deploy/rules/modint.yml: run `make generated`"


ASSERTIONS = (
    everything_lies_in_one_namespace,
    selectors_match_pods,
    services_lead_to_ports_that_exist,
    probes_point_at_routes,
    settings_and_flags_exist,
    nothing_runs_as_root_or_writes_to_its_root,
    no_service_becomes_a_setting,
    quantities_can_be_read,
    mounts_have_volumes_and_images_versions,
    nothing_is_reachable_that_is_not_named,
    keys_come_from_files,
    budgets_leave_room_to_drain_a_node,
    autoscalers_follow_what_exists,
    custom_resources_say_what_they_mean,
)


# What the code knows


@cache
def routes() -> set[str]:
    return {str(getattr(route, "path", "")) for route in create_app(Settings()).routes}


def settings() -> set[str]:
    return {ENV_PREFIX + name.upper() for name in Settings.model_fields}


@cache
def known_metrics() -> set[str]:
    return {family.name for family in families()}


def copied() -> set[str]:
    """What the Dockerfile's first stage takes from the repository."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)
    return {name for line in lines for name in line.split()}


def of_kind(found: list[JSON], name: str) -> list[JSON]:
    return [one for one in found if one["kind"] == name]


def pods(found: list[JSON]) -> list[tuple[str, JSON, JSON]]:
    """(name, labels, spec) of every Deployment's pods."""
    templates = [(one["metadata"]["name"], one["spec"]["template"]) for one in of_kind(found, "Deployment")]
    return [(name, template["metadata"]["labels"], template["spec"]) for name, template in templates]


def _name(one: JSON) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def _quantities(document: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything that is to be a quantity."""
    if isinstance(document, dict):
        for key, part in document.items():
            if key in ("requests", "limits", "hard") and isinstance(part, dict):
                yield from part.items()
            elif key == "sizeLimit":
                yield key, part
            else:
                yield from _quantities(part)
    elif isinstance(document, list):
        for part in document:
            yield from _quantities(part)


def _texts(document: Any) -> Iterator[str]:
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict | list):
        for part in document.values() if isinstance(document, dict) else document:
            yield from _texts(part)


def main(folder: Path) -> int:
    """Renders, checks and tells; the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for overlay in OVERLAYS:
        try:
            text = text_of(KUSTOMIZE / "overlays" / overlay)
        except RenderError as error:
            print(f"{overlay}: {error}", file=sys.stderr)
            return 1
        (folder / f"{overlay}.yaml").write_text(text, "utf-8")
        found = list(yaml.safe_load_all(text))
        custom = sorted({one["kind"] for one in found if one["kind"] in CUSTOM})
        said = problems(found)
        checked = sum(one["kind"] not in CUSTOM for one in found)
        print(
            f"{overlay}: {len(found)} objects, {len(said) or 'no'} problems; {checked} held against the "
            f"schemas of Kubernetes {KUBERNETES}, not schema-checked: {', '.join(custom) or 'none'}"
        )
        for one in said:
            print(f"  {one}")
        wrong += len(said)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
