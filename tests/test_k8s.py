"""What every rendering has to keep: Kubernetes' own schemas, and the written policies of a careful cluster."""

import base64
import itertools
import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

import service
from service.broker.opening import CLOSE_TIMEOUT
from service.settings import PREFIX, Settings, known_names, unknown_names
from tests.certificates import Authority
from tests.tools import custom_resources, manifests
from tests.tools.manifests import BROKER_TLS, HPA, KEDA, Manifest, environment, named, pod_of

KUBERNETES_VERSIONS = ("1.29", "1.33", "1.37")

RENDERINGS = ("base", "overlays/dev", "overlays/production", "production-hpa", "production-tls")
DISPATCHER = "webhook-dispatcher"


@pytest.fixture(scope="session", params=RENDERINGS)
def everything(request, tmp_path_factory) -> tuple[Manifest, ...]:
    """All manifests of one rendering."""
    folder = tmp_path_factory.mktemp("k8s")
    match request.param:
        case "production-hpa":
            path = manifests.production_with(folder, HPA)
        case "production-tls":
            path = manifests.production_with(folder, KEDA, BROKER_TLS)
        case name:
            path = manifests.K8S / name
    return manifests.rendered(str(path))


@pytest.fixture
def dev() -> tuple[Manifest, ...]:
    return manifests.rendered("overlays/dev")


@pytest.fixture
def pods(everything) -> list[Manifest]:
    found = [pod_of(workload) for workload in manifests.workloads(everything)]
    assert found
    return found


@pytest.fixture
def containers(pods) -> list[Manifest]:
    return [
        one
        for pod in pods
        for one in itertools.chain(pod["containers"], pod.get("initContainers", []))
    ]


@pytest.fixture
def deployment(everything) -> Manifest:
    return named(everything, "Deployment", DISPATCHER)


@pytest.fixture
def pod(deployment) -> Manifest:
    return pod_of(deployment)


@pytest.fixture
def container(pod) -> Manifest:
    [only] = pod["containers"]
    container: Manifest = only
    return container


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_takes_it(everything, version):
    for manifest in everything:
        if manifest["apiVersion"].split("/")[0] not in custom_resources.GROUPS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_nothing_is_there_twice_and_all_is_in_one_namespace(everything):
    keys = [(m["apiVersion"], m["kind"], m["metadata"]["name"]) for m in everything]
    assert len(set(keys)) == len(keys)
    namespaces = {m["metadata"].get("namespace") for m in everything if m["kind"] != "Namespace"}
    assert namespaces in (
        {None},
        {m["metadata"]["name"] for m in manifests.of_kind(everything, "Namespace")},
    )


def test_every_image_has_a_version_that_is_not_a_moving_one(everything, containers):
    images = [container["image"] for container in containers]
    images += [m["spec"]["image"] for m in manifests.of_kind(everything, "RabbitmqCluster")]
    for image in images:
        tag = re.fullmatch(r"[^:@]+(?::\d+/[^:@]+)?:(?P<tag>[\w.-]+)", image)
        assert tag, image
        assert re.match(r"\d+\.\d+\.\d+", tag["tag"]), image


def test_the_dispatcher_is_the_version_that_the_package_has(deployment, container):
    assert container["image"].rpartition("/")[2] == f"{DISPATCHER}:{service.__version__}"
    for metadata in (deployment["metadata"], deployment["spec"]["template"]["metadata"]):
        assert metadata["labels"]["app.kubernetes.io/version"] == service.__version__


def test_the_broker_is_the_same_everywhere(everything, containers):
    compose = yaml.safe_load((manifests.ROOT / "compose.yaml").read_text())
    images = {c["image"] for c in containers if c["name"] == "rabbitmq"}
    images |= {m["spec"]["image"] for m in manifests.of_kind(everything, "RabbitmqCluster")}
    assert images <= {compose["services"]["rabbitmq"]["image"]}


def test_nothing_runs_with_more_rights_than_it_needs(pods, containers):
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for volume in pod["volumes"]:
            assert volume.keys() & {"configMap", "secret", "emptyDir"}, volume
    for container in containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_no_pod_can_talk_to_the_cluster(everything, pods):
    assert all(pod["automountServiceAccountToken"] is False for pod in pods)
    for account in manifests.of_kind(everything, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_requests_and_limits_are_set(containers):
    for container in containers:
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}


def test_every_probe_is_there_and_asks_a_port_that_is_there(containers):
    for container in containers:
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            [(_, how)] = [
                (k, v) for k, v in container[probe].items() if k in ("httpGet", "tcpSocket")
            ]
            assert how["port"] in ports


def test_only_readiness_asks_whether_the_broker_is_there(container):
    told = environment(container)
    paths = {
        probe: container[f"{probe}Probe"]["httpGet"]["path"]
        for probe in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    [port] = container["ports"]
    assert str(port["containerPort"]) == told["DISPATCHER_ADMIN_PORT"]
    assert told["DISPATCHER_ADMIN_HOST"] == "0.0.0.0"


def test_every_setting_is_one_that_the_dispatcher_knows(pod, container):
    assert [one["name"] for one in container["env"] if one["name"] not in known_names()] == []
    assert pod["enableServiceLinks"] is False


def test_settings_outside_the_manifests_are_known_as_well():
    compose = yaml.safe_load((manifests.ROOT / "compose.yaml").read_text())
    told = [
        compose_service.get("environment", {}) for compose_service in compose["services"].values()
    ]
    dockerfile = (manifests.ROOT / "Dockerfile").read_text()
    names = {name for environ in told for name in environ}
    names |= set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", dockerfile))
    assert {name for name in names if name.startswith(PREFIX)} <= known_names()


@pytest.fixture
def settings(container, tmp_path) -> Settings:
    """The settings that the pod comes to, with files where its volumes would be."""
    url = tmp_path / "url"
    url.write_text("amqps://user:password@host:5671/vhost\n")
    told = environment(container) | {"DISPATCHER_AMQP_URL_FILE": str(url)}
    if "DISPATCHER_AMQP_CA_FILE" in told:
        told["DISPATCHER_AMQP_CA_FILE"] = Authority(tmp_path).ca_file
    assert unknown_names(told) == []
    return Settings.load(told)


def test_the_drain_ends_before_the_kill(pod, container, settings):
    [pause] = [int(word) for word in container["lifecycle"]["preStop"]["exec"]["command"][1:]]
    # Two consumers to cancel and two connections to close, at a broker that no longer answers.
    longest = pause + settings.drain_timeout + 4 * CLOSE_TIMEOUT
    assert longest < pod["terminationGracePeriodSeconds"] <= longest + 10


def test_a_rate_limit_holds_with_as_many_replicas_as_there_can_be(everything, deployment, settings):
    most = [deployment["spec"].get("replicas")]
    most += [m["spec"]["maxReplicaCount"] for m in manifests.of_kind(everything, "ScaledObject")]
    most += [
        m["spec"]["maxReplicas"] for m in manifests.of_kind(everything, "HorizontalPodAutoscaler")
    ]
    # Where an autoscaler decides, the manifest says nothing, or applying it would undo the decision.
    assert [settings.replicas] == [number for number in most if number is not None]


def test_a_rolling_update_takes_no_replica_away_before_its_replacement_is_ready(deployment):
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_files_that_settings_name_are_mounted_as_folders(pod, container):
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for name, value in environment(container).items():
        if name.endswith("_FILE"):
            assert str(Path(value).parent) in mounts
        elif name == "DISPATCHER_SUBSCRIPTIONS":
            assert value in mounts
    assert all("subPath" not in mount and mount["readOnly"] for mount in mounts.values())
    assert {mount["name"] for mount in mounts.values()} == {v["name"] for v in pod["volumes"]}


def test_volumes_are_there_and_writable_ones_are_no_one_elses(pods):
    for pod in pods:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            for mount in container["volumeMounts"]:
                assert mount.get("readOnly") or "emptyDir" in volumes[mount["name"]]


def test_selectors_select_the_pods_they_are_meant_for(everything):
    labels = [w["spec"]["template"]["metadata"]["labels"] for w in manifests.workloads(everything)]
    # The operator labels the broker's pods with the name of the cluster.
    labels += [
        {"app.kubernetes.io/name": m["metadata"]["name"]}
        for m in manifests.of_kind(everything, "RabbitmqCluster")
    ]
    for selector in _selectors(everything):
        assert any(selector.items() <= of_pod.items() for of_pod in labels), selector


def _selectors(everything: tuple[Manifest, ...]) -> list[dict[str, str]]:
    found = [m["spec"]["selector"] for m in manifests.of_kind(everything, "Service")]
    found += [
        m["spec"]["selector"]["matchLabels"]
        for m in everything
        if m["kind"] in ("PodDisruptionBudget", "Deployment", "StatefulSet")
    ]
    found += [
        m["spec"]["podSelector"]["matchLabels"]
        for m in manifests.of_kind(everything, "NetworkPolicy")
    ]
    found += [
        spread["labelSelector"]["matchLabels"]
        for workload in manifests.workloads(everything)
        for spread in pod_of(workload).get("topologySpreadConstraints", [])
    ]
    return found


def test_services_lead_to_ports_that_are_there(everything):
    for one in manifests.of_kind(everything, "Service"):
        [workload] = [
            w
            for w in manifests.workloads(everything)
            if one["spec"]["selector"].items()
            <= w["spec"]["template"]["metadata"]["labels"].items()
        ]
        [container] = pod_of(workload)["containers"]
        names = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= names


def test_the_dispatcher_keeps_a_replica_through_every_disruption(everything, deployment, settings):
    budget = named(everything, "PodDisruptionBudget", DISPATCHER)
    assert deployment["spec"].get("replicas", 2) > budget["spec"]["maxUnavailable"]
    spread = {one["topologyKey"] for one in pod_of(deployment)["topologySpreadConstraints"]}
    assert "kubernetes.io/hostname" in spread


def test_what_a_pod_needs_is_there_or_is_in_the_readme(everything, pods):
    readme = (manifests.K8S / "README.md").read_text()
    there = {(m["kind"], m["metadata"]["name"]) for m in everything}
    for pod in pods:
        for kind, name, optional in manifests.referred(pod):
            assert (kind, name) in there or optional or (kind == "Secret" and f"`{name}`" in readme)


def test_names_stay_when_content_changes(everything):
    """A hash in the name of a ConfigMap or Secret would restart the pods, which need no restart."""
    for manifest in manifests.of_kind(everything, "ConfigMap", "Secret"):
        assert not re.search(r"-[a-z0-9]{10}$", manifest["metadata"]["name"])


def test_dev_needs_nothing_that_it_does_not_bring(dev):
    there = {(m["kind"], m["metadata"]["name"]) for m in dev}
    for workload in manifests.workloads(dev):
        for kind, name, _ in manifests.referred(pod_of(workload)):
            assert (kind, name) in there
    assert {m["apiVersion"].split("/")[0] for m in dev}.isdisjoint(custom_resources.GROUPS)


def test_dev_leads_from_broker_to_receiver(dev):
    services = {
        f"{m['metadata']['name']}:{port['port']}"
        for m in manifests.of_kind(dev, "Service")
        for port in m["spec"]["ports"]
    }
    url = _secret(dev, "webhook-dispatcher-amqp")["url"]
    user = _secret(dev, "rabbitmq")
    credentials = f"{user['username']}:{user['password']}"
    assert re.fullmatch(rf"amqp://{credentials}@(?P<host>[^/]+)/", url)
    assert url.split("@")[1].rstrip("/") in services
    data = named(dev, "ConfigMap", "webhook-dispatcher-subscriptions")["data"]
    [subscription] = yaml.safe_load(data["subscriptions.yaml"])["subscriptions"]
    [target] = subscription["targets"]
    assert target["url"].split("/")[2] in services
    [secret] = subscription["signing"]["secrets"]
    assert Path(secret["file"]).parent == Path("/run/secrets/signing")
    assert Path(secret["file"]).name in _secret(dev, "webhook-dispatcher-signing")


def _secret(everything: tuple[Manifest, ...], name: str) -> dict[str, Any]:
    data = named(everything, "Secret", name)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def test_compose_takes_no_port_that_may_be_in_use_and_says_how_each_is_found():
    text = (manifests.ROOT / "compose.yaml").read_text()
    told = set(re.findall(r"docker compose port (\S+) (\d+)", text))
    published = set()
    for name, one in yaml.safe_load(text)["services"].items():
        for port in one.get("ports", []):
            assert port.startswith("127.0.0.1::"), port  # the host's port stands between the colons
            published.add((name, port.rpartition(":")[2]))
    assert published
    assert told == published


def test_compose_names_only_what_is_there_and_signs_with_the_secret_that_it_verifies_with():
    compose = yaml.safe_load((manifests.ROOT / "compose.yaml").read_text())
    for one in compose["services"].values():
        assert {config["source"] for config in one.get("configs", [])} <= compose["configs"].keys()
        assert set(one.get("depends_on", [])) <= compose["services"].keys()
    for config in compose["configs"].values():
        assert "file" not in config or (manifests.ROOT / config["file"]).is_file()
    secret = compose["services"]["dispatcher"]["environment"]["SAMPLE_SECRET"]
    assert compose["configs"]["sample-secret"]["content"] == secret
    seconds = int(compose["services"]["dispatcher"]["stop_grace_period"].removesuffix("s"))
    assert seconds >= Settings().drain_timeout + 4 * CLOSE_TIMEOUT
