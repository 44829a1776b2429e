"""The manifests in ``deploy/`` against the settings, the protocols and one another."""

from __future__ import annotations

import json
import re
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import yaml
from flyteidl.admin import agent_pb2
from flyteidl.service import agent_pb2_grpc

from connector_service import config
from connector_service.errors import ConfigError
from connector_service.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
CLOSING = 5  # seconds that a process needs beyond drain_delay and grace

# A file that is part of a ConfigMap is propeller's, not a manifest.
MANIFESTS = ("service.yaml", "sidecar.yaml")


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def _one(name: str, kind: str) -> dict[str, Any]:
    (document,) = (document for document in _documents(name) if document["kind"] == kind)
    return document


def _pod(name: str) -> dict[str, Any]:
    pod: dict[str, Any] = _one(name, "Deployment")["spec"]["template"]["spec"]
    return pod


def _container(name: str) -> dict[str, Any]:
    pod = _pod(name)
    (container,) = (
        container
        for container in (*pod.get("initContainers", ()), *pod["containers"])
        if container["name"] == "connector-service"
    )
    return container


def _settings(name: str, tmp_path: Path) -> config.Config:
    """The settings as the container of the manifest would load them."""
    file = tmp_path / "connector-service.toml"
    file.write_text(_one(name, "ConfigMap")["data"]["connector-service.toml"], encoding="utf-8")
    environ = {variable["name"]: variable["value"] for variable in _container(name)["env"]}
    return config.load(environ=environ, file=file)


def _seconds(text: str) -> int:
    assert re.fullmatch(r"\d+s", text), text
    return int(text[:-1])


def _client(propeller: dict[str, Any]) -> dict[str, Any]:
    deployment: dict[str, Any] = propeller["plugins"]["connector-service"]["defaultConnector"]
    return deployment


def _propeller() -> dict[str, Any]:
    (document,) = _documents("propeller.yaml")
    return document


def _sidecars_propeller() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(
        _one("sidecar.yaml", "ConfigMap")["data"]["propeller.yaml"]
    )
    return document


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_document_is_a_named_object_in_flytes_namespace(name: str) -> None:
    """A manifest applies as it stands, into one namespace."""
    for document in _documents(name):
        assert document["apiVersion"]
        assert document["kind"]
        assert document["metadata"]["name"]
        assert document["metadata"]["namespace"] == "flyte"


@pytest.mark.parametrize("name", MANIFESTS)
def test_settings_load_and_listen_where_the_kubelet_probes(name: str, tmp_path: Path) -> None:
    """The ConfigMap and the environment are valid settings, reachable from outside the pod."""
    settings = _settings(name, tmp_path)
    assert settings.listen.host == "::"
    assert settings.log.log_format == "json"


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_setting_nobody_knows_would_fail_these_tests(name: str, tmp_path: Path) -> None:
    """The check above is one that can fail, for the file and for the environment."""
    file = tmp_path / "connector-service.toml"
    text = _one(name, "ConfigMap")["data"]["connector-service.toml"]
    file.write_text(text.replace("drain_delay", "drain_dealy"), encoding="utf-8")
    with pytest.raises(ConfigError, match="drain_dealy"):
        config.load(file=file)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="CONNECTOR_SERVICE_GRACEFUL"):
        config.load(environ={"CONNECTOR_SERVICE_GRACEFUL": "1"}, file=file)


@pytest.mark.parametrize("name", MANIFESTS)
def test_file_is_mounted_where_the_variable_points(name: str) -> None:
    """CONNECTOR_SERVICE_CONFIG names a file that the ConfigMap's volume really holds."""
    (variable,) = _container(name)["env"]
    assert variable["name"] == f"{config.ENV_PREFIX}CONFIG"
    path = Path(variable["value"])
    (mount,) = (m for m in _container(name)["volumeMounts"] if m["mountPath"] == str(path.parent))
    (volume,) = (v for v in _pod(name)["volumes"] if v["name"] == mount["name"])
    config_map = _one(name, "ConfigMap")
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    assert path.name in config_map["data"]
    items = volume["configMap"].get("items", [{"path": path.name}])
    assert path.name in {item["path"] for item in items}


@pytest.mark.parametrize("name", MANIFESTS)
def test_ports_are_those_of_the_settings(name: str, tmp_path: Path) -> None:
    """Probes, container ports and the Service agree with what the process listens on."""
    settings = _settings(name, tmp_path)
    container = _container(name)
    grpc_port, metrics_port = settings.listen.port, settings.metrics.prometheus_port
    assert [port["containerPort"] for port in container["ports"]] == [grpc_port, metrics_port]
    for probe in PROBES:
        assert container[probe]["grpc"] == {"port": grpc_port}  # no service: it asks for ""
    if name == "service.yaml":
        service = _one(name, "Service")["spec"]["ports"]
        assert [(p["port"], p["targetPort"]) for p in service] == [
            (grpc_port, grpc_port),
            (metrics_port, metrics_port),
        ]


@pytest.mark.parametrize("name", MANIFESTS)
def test_pod_outlives_the_drain(name: str, tmp_path: Path) -> None:
    """Nobody kills the process while it drains: not the kubelet's clock, not its liveness probe."""
    drain = _settings(name, tmp_path).drain
    leaving = drain.drain_delay + drain.grace
    assert _pod(name)["terminationGracePeriodSeconds"] >= leaving + CLOSING
    liveness = _container(name)["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > leaving + CLOSING


def test_service_drains_until_clients_have_seen_it(tmp_path: Path) -> None:
    """The service keeps answering for as long as its readiness probe needs to fail."""
    readiness = _container("service.yaml")["readinessProbe"]
    noticed = readiness["periodSeconds"] * readiness["failureThreshold"]
    assert _settings("service.yaml", tmp_path).drain.drain_delay >= noticed


def test_sidecar_starts_before_propeller_and_leaves_after_it() -> None:
    """The sidecar need not delay its drain, because the kubelet stops propeller first."""
    (sidecar,) = _pod("sidecar.yaml")["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert "startupProbe" in sidecar


@pytest.mark.parametrize("name", MANIFESTS)
def test_image_is_this_release(name: str) -> None:
    """The tag is the release's own, never latest, so a manifest says what it runs."""
    assert _container(name)["image"] == f"connector-service:{__version__}"


@pytest.mark.parametrize("name", MANIFESTS)
def test_container_may_do_next_to_nothing(name: str) -> None:
    """Not root, no capability, no new privilege, a root nobody writes to, a numeric user."""
    pod, container = _pod(name), _container(name)
    security = {**pod.get("securityContext", {}), **container["securityContext"]}
    assert security.pop("fsGroup", 65532) == 65532
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["resources"]["requests"]
    assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_nothing_of_the_cluster_leaks_into_the_container(name: str) -> None:
    """No service links, and no token of a service account, propeller's least of all."""
    assert _pod(name)["enableServiceLinks"] is False
    if name == "service.yaml":
        assert _pod(name)["automountServiceAccountToken"] is False
        account = _one(name, "ServiceAccount")
        assert account["automountServiceAccountToken"] is False
        assert _pod(name)["serviceAccountName"] == account["metadata"]["name"]
    else:
        volumes = {volume["name"]: volume for volume in _pod(name)["volumes"]}
        (mount,) = (
            mount
            for mount in _container(name)["volumeMounts"]
            if mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
        )
        assert "emptyDir" in volumes[mount["name"]]


@pytest.mark.parametrize("name", MANIFESTS)
def test_volumes_are_the_ones_mounted(name: str) -> None:
    """Secrets lie where connectors look, /tmp can be written, and nothing dangles."""
    pod = _pod(name)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {
        mount["name"]
        for container in (*pod.get("initContainers", ()), *pod["containers"])
        for mount in container["volumeMounts"]
    }
    assert mounted == set(volumes)
    places = {m["mountPath"]: volumes[m["name"]] for m in _container(name)["volumeMounts"]}
    assert places["/etc/secrets"]["secret"]["optional"] is True
    assert "emptyDir" in places["/tmp"]
    assert [m["mountPath"] for m in _container(name)["volumeMounts"] if not m.get("readOnly")] == [
        "/tmp"
    ]


def test_service_selects_its_pods() -> None:
    """Service, budget, policy and Deployment mean the same pods, and two of them or more."""
    deployment = _one("service.yaml", "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["replicas"] >= 2
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    service = _one("service.yaml", "Service")["spec"]
    assert service["selector"] == labels
    assert service["clusterIP"] == "None"
    assert not service.get("publishNotReadyAddresses", False)
    budget = _one("service.yaml", "PodDisruptionBudget")["spec"]
    assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
    assert _one("service.yaml", "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels


def test_annotations_lead_prometheus_to_the_metrics(tmp_path: Path) -> None:
    """The scrape annotations of the service's pods name the port that serves /metrics."""
    annotations = _one("service.yaml", "Deployment")["spec"]["template"]["metadata"]["annotations"]
    port = _settings("service.yaml", tmp_path).metrics.prometheus_port
    assert annotations == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(port),
        "prometheus.io/path": "/metrics",
    }


@pytest.mark.parametrize("name", MANIFESTS)
def test_network_policy_opens_only_what_is_meant(name: str, tmp_path: Path) -> None:
    """The gRPC port is open to Flyte in the service, and to no other pod in the sidecar."""
    settings = _settings(name, tmp_path)
    policy = _one(name, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    opened = {
        port["port"]: rule.get("from") for rule in policy["ingress"] for port in rule["ports"]
    }
    assert settings.metrics.prometheus_port in opened
    if name == "sidecar.yaml":
        assert settings.listen.port not in opened
    else:
        assert opened[settings.listen.port]  # from somewhere, not from everywhere


def _merge(base: Any, patch: Any) -> Any:
    """Merge as Kubernetes does for the lists used here: by mountPath or name, others replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {
            **base,
            **{key: _merge(base[key], patch[key]) if key in base else patch[key] for key in patch},
        }
    if isinstance(base, list) and isinstance(patch, list):
        key = next((k for k in ("mountPath", "name") if all(k in item for item in patch)), None)
        if key is not None:
            merged = {item[key]: item for item in base}
            for item in patch:
                merged[item[key]] = _merge(merged.get(item[key], {}), item)
            return list(merged.values())
    return patch


# What the flyte-core chart renders, as far as the sidecar touches it.
PROPELLER_DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "flytepropeller", "namespace": "flyte"},
    "spec": {
        "selector": {"matchLabels": {"app.kubernetes.io/name": "flytepropeller"}},
        "template": {
            "metadata": {"labels": {"app.kubernetes.io/name": "flytepropeller"}},
            "spec": {
                "containers": [
                    {
                        "name": "flytepropeller",
                        "image": "flytepropeller:v1.16.8",
                        "command": ["flytepropeller", "--config", "/etc/flyte/config/*.yaml"],
                        "volumeMounts": [
                            {"name": "config-volume", "mountPath": "/etc/flyte/config"},
                            {"name": "auth", "mountPath": "/etc/secrets/"},
                        ],
                    }
                ],
                "serviceAccountName": "flytepropeller",
                "volumes": [
                    {
                        "name": "config-volume",
                        "projected": {"sources": [{"configMap": {"name": "propeller-config"}}]},
                    },
                    {"name": "auth", "secret": {"secretName": "flyte-secret-auth"}},
                ],
            },
        },
    },
}


def test_sidecar_leaves_the_charts_propeller_as_it_was() -> None:
    """The patch adds to propeller's Deployment: of the chart's own fields none changes."""
    patch = _one("sidecar.yaml", "Deployment")
    before = PROPELLER_DEPLOYMENT["spec"]["template"]["spec"]
    pod = _merge(deepcopy(PROPELLER_DEPLOYMENT), patch)["spec"]["template"]["spec"]
    (propeller,) = pod["containers"]
    (chart,) = before["containers"]
    assert propeller["image"] == chart["image"]
    assert propeller["command"] == chart["command"]
    assert propeller["volumeMounts"][:2] == chart["volumeMounts"]
    assert pod["volumes"][:2] == before["volumes"]
    assert len({volume["name"] for volume in pod["volumes"]}) == len(pod["volumes"]) == 7
    assert pod["serviceAccountName"] == "flytepropeller"


def test_propeller_finds_its_own_files_and_the_sidecars() -> None:
    """The one pattern given to propeller matches the chart's directory and the added one."""
    (propeller,) = _pod("sidecar.yaml")["containers"]
    flag, pattern = propeller["args"]
    assert flag == "--config"
    (mount,) = propeller["volumeMounts"]
    for directory in ("/etc/flyte/config", mount["mountPath"]):
        assert Path(directory, "x.yaml").match(pattern)
    (volume,) = (v for v in _pod("sidecar.yaml")["volumes"] if v["name"] == mount["name"])
    (item,) = volume["configMap"]["items"]
    assert item["path"].endswith(".yaml")
    assert item["key"] == "propeller.yaml"


def test_propeller_is_pointed_at_the_service_by_name(tmp_path: Path) -> None:
    """The address is the Service's, on the very port the pods listen on, resolved per pod."""
    metadata = _one("service.yaml", "Service")["metadata"]
    port = _settings("service.yaml", tmp_path).listen.port
    assert _client(_propeller())["endpoint"] == (
        f"k8s://{metadata['name']}.{metadata['namespace']}:{port}"
    )


def test_propeller_is_pointed_at_its_sidecar_otherwise_alike(tmp_path: Path) -> None:
    """The two client configurations differ in the address alone."""
    theirs = _sidecars_propeller()
    port = _settings("sidecar.yaml", tmp_path).listen.port
    assert _client(theirs).pop("endpoint") == f"localhost:{port}"
    ours = _propeller()
    del _client(ours)["endpoint"]
    assert theirs == ours


CLIENTS = pytest.mark.parametrize(
    ("propeller", "manifest"),
    [
        pytest.param(_propeller(), "service.yaml", id="service"),
        pytest.param(_sidecars_propeller(), "sidecar.yaml", id="sidecar"),
    ],
)


@CLIENTS
def test_timeouts_are_ones_that_propeller_reads(
    propeller: dict[str, Any], manifest: str, tmp_path: Path
) -> None:
    """Timeouts are a list, under names that the client asks for, and no longer than the grace.

    Propeller lower-cases the keys of maps, and looks `CreateTask` up in capitals: it keeps the
    case of maps inside a list only. Each name it does not find gets the default.
    """
    client = _client(propeller)
    assert isinstance(client["timeouts"], list)
    timeouts = {name: _seconds(text) for item in client["timeouts"] for name, text in item.items()}
    assert set(timeouts) <= {
        "CreateTask",
        "GetTask",
        "DeleteTask",
        "ExecuteTaskSync",
        "ListConnectors",
    }
    longest = max(*timeouts.values(), _seconds(client["defaultTimeout"]))
    assert longest <= _settings(manifest, tmp_path).drain.grace
    # A poll that is answered after the next one was due would queue up behind itself.
    assert timeouts["ListConnectors"] < _seconds(
        propeller["plugins"]["connector-service"]["pollInterval"]
    )


@CLIENTS
def test_task_types_are_pinned_twice(propeller: dict[str, Any], manifest: str) -> None:
    """Every task type is in both lists: propeller ignores a pin for a type it does not know.

    Only `connector-service` is configured: with `agent-service` at the same address two plugins
    would claim each type, and propeller refuses to start.
    """
    del manifest
    assert set(propeller["plugins"]) == {"connector-service"}
    listed = propeller["plugins"]["connector-service"]["supportedTaskTypes"]
    pinned = propeller["tasks"]["task-plugins"]["default-for-task-types"]
    assert pinned == dict.fromkeys(listed, "connector-service")
    assert all(name == name.lower() for name in listed)  # its keys lose their capitals


@CLIENTS
def test_task_types_are_the_shipped_ones(propeller: dict[str, Any], manifest: str) -> None:
    """Whoever applies the examples as they are gets every connector of the image."""
    del manifest
    pytest.importorskip("duckdb", reason="the duckdb extra is not installed")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    targets = project["entry-points"]["connector_service.connectors"].values()
    shipped = []
    for target in targets:
        module, attribute = target.split(" ")[0].split(":")
        shipped.append(getattr(import_module(module), attribute)().task_category.name)
    listed = propeller["plugins"]["connector-service"]["supportedTaskTypes"]
    assert sorted(listed) == sorted(shipped)


@CLIENTS
def test_plaintext_is_said_aloud(propeller: dict[str, Any], manifest: str) -> None:
    """`insecure` is written down, for its absence means TLS in every entry but the default."""
    del manifest
    assert _client(propeller)["insecure"] is True


@CLIENTS
def test_service_config_names_services_that_exist(propeller: dict[str, Any], manifest: str) -> None:
    """Each service of the gRPC service config is one of Flyte's, and all of them are there."""
    del manifest
    service_config = json.loads(_client(propeller)["defaultServiceConfig"])
    named = [
        name["service"] for method in service_config["methodConfig"] for name in method["name"]
    ]
    pinned = {
        service
        for file in ("flyteidl.toml", "flyteidl2.toml")
        for service in tomllib.loads((REPOSITORY / "protos" / file).read_text("utf-8"))["services"]
    }
    assert sorted(named) == sorted(pinned)
    assert service_config["loadBalancingConfig"] == [{"round_robin": {}}]
    # A sync call runs the job, and nothing remembers that it did: it may wait, not repeat.
    (sync,) = (
        method
        for method in service_config["methodConfig"]
        if {"service": "flyteidl.service.SyncAgentService"} in method["name"]
    )
    assert "retryPolicy" not in sync


class _Flaky(agent_pb2_grpc.AsyncAgentServiceServicer):  # type: ignore[misc]
    """Unavailable twice, then well."""

    def __init__(self) -> None:
        self.calls = 0

    def GetTask(  # noqa: N802 - the proto's name
        self, _request: agent_pb2.GetTaskRequest, context: grpc.ServicerContext
    ) -> agent_pb2.GetTaskResponse:
        self.calls += 1
        if self.calls < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        return agent_pb2.GetTaskResponse(resource=agent_pb2.Resource(message="well"))


@contextmanager
def _serve(servicer: _Flaky) -> Iterator[str]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        server = grpc.server(pool)
        agent_pb2_grpc.add_AsyncAgentServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def test_service_config_makes_a_client_retry() -> None:
    """The service config is valid as written, and a call outlives two UNAVAILABLE answers."""
    servicer = _Flaky()
    options = [("grpc.service_config", _client(_propeller())["defaultServiceConfig"])]
    with _serve(servicer) as address, grpc.insecure_channel(address, options=options) as channel:
        stub = agent_pb2_grpc.AsyncAgentServiceStub(channel)
        answer = stub.GetTask(agent_pb2.GetTaskRequest(), timeout=10)
    assert answer.resource.message == "well"
    assert servicer.calls == 3


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_schemas_accept_the_manifests(name: str) -> None:
    """No field is misspelt or misplaced, by Kubernetes' own strict schemas."""
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed: schemas UNCHECKED"
    )
    for document in _documents(name):
        whole = document
        if name == "sidecar.yaml" and document["kind"] == "Deployment":
            whole = _merge(deepcopy(PROPELLER_DEPLOYMENT), document)
        validate.validate(whole, "1.33.0", strict=True)
