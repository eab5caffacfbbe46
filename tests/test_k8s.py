"""The manifests are what Kubernetes takes, what a careful cluster admits, and what the settings know."""

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

import service
from service.settings import Settings, known_names

KUBERNETES_VERSIONS = ("1.29", "1.33")
BASE = Path(__file__).parent.parent / "k8s" / "base"
KUSTOMIZATION = yaml.safe_load((BASE / "kustomization.yaml").read_text())
FILES = sorted(set(BASE.glob("*.yaml")) - {BASE / "kustomization.yaml"})
MANIFESTS = [
    pytest.param(manifest, id=f"{file.stem}-{manifest['kind']}")
    for file in FILES
    for manifest in yaml.safe_load_all(file.read_text())
]


@pytest.fixture
def deployment() -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((BASE / "deployment.yaml").read_text())
    return manifest


@pytest.fixture
def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    only, *others = pod["containers"]
    assert not others
    container: dict[str, Any] = only
    return container


@pytest.fixture
def environment(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS)
def test_every_manifest_is_valid(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_kustomization_has_every_file() -> None:
    assert sorted(KUSTOMIZATION["resources"]) == [file.name for file in FILES]


def test_the_image_is_the_version_that_the_package_has(container: dict[str, Any]) -> None:
    assert container["image"] == f"webhook-dispatcher:{service.__version__}"


def test_nothing_runs_with_more_rights_than_it_needs(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_no_pod_can_talk_to_the_cluster(pod: dict[str, Any]) -> None:
    account = yaml.safe_load((BASE / "service-account.yaml").read_text())
    assert account["automountServiceAccountToken"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == account["metadata"]["name"]


def test_requests_and_limits_are_set(container: dict[str, Any]) -> None:
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert container["resources"]["limits"].keys() == {"cpu", "memory"}


def test_only_readiness_asks_whether_the_broker_is_there(
    container: dict[str, Any], environment: dict[str, str]
) -> None:
    paths = {
        probe: container[f"{probe}Probe"]["httpGet"]["path"]
        for probe in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    (port,) = container["ports"]
    assert str(port["containerPort"]) == environment["DISPATCHER_ADMIN_PORT"]
    assert environment["DISPATCHER_ADMIN_HOST"] == "0.0.0.0"


def test_every_setting_is_one_that_the_dispatcher_knows(
    pod: dict[str, Any], environment: dict[str, str]
) -> None:
    assert environment.keys() <= known_names()
    assert pod["enableServiceLinks"] is False


def test_the_drain_ends_before_the_kill_and_replicas_are_said_once(
    deployment: dict[str, Any],
    pod: dict[str, Any],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    url = tmp_path / "url"
    url.write_text("amqps://user:password@host:5671/vhost\n")
    settings = Settings.load({**environment, "DISPATCHER_AMQP_URL_FILE": str(url)})
    assert settings.drain_timeout + 5 <= pod["terminationGracePeriodSeconds"]
    assert settings.replicas == deployment["spec"]["replicas"]


def test_files_that_settings_name_are_mounted_as_folders(
    pod: dict[str, Any], container: dict[str, Any], environment: dict[str, str]
) -> None:
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert environment["DISPATCHER_SUBSCRIPTIONS"] in mounts
    assert str(Path(environment["DISPATCHER_AMQP_URL_FILE"]).parent) in mounts
    assert all("subPath" not in mount and mount["readOnly"] for mount in mounts.values())
    assert {mount["name"] for mount in mounts.values()} == {v["name"] for v in pod["volumes"]}


def test_labels_select_the_pods_they_are_meant_for(deployment: dict[str, Any]) -> None:
    budget = yaml.safe_load((BASE / "pod-disruption-budget.yaml").read_text())
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels
    assert deployment["spec"]["replicas"] > budget["spec"]["maxUnavailable"]
