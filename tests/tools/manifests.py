"""Manifests as the cluster gets them: rendered by `kubectl kustomize`."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
KEDA, HPA, BROKER_TLS = (f"../../components/{name}" for name in ("keda", "hpa", "broker-tls"))

Manifest = dict[str, Any]


@cache
def rendered(name: str) -> tuple[Manifest, ...]:
    """Return what an overlay, `base`, or one of production's variants comes to.

    Skips the test, with the reason, where there is no kubectl that can render it.
    """
    why_not = _why_not()
    if why_not:
        pytest.skip(why_not)
    done = subprocess.run(
        ["kubectl", "kustomize", K8S / name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kustomize warns: " + done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def production_with(folder: Path, *components: str) -> Path:
    """Copy `k8s` to a folder, with other components in the production overlay; returns that overlay."""
    copy = shutil.copytree(K8S, folder / "k8s") / "overlays" / "production"
    kustomization = yaml.safe_load((copy / "kustomization.yaml").read_text())
    kustomization["components"] = list(components)
    (copy / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return copy


@cache
def _why_not() -> str | None:
    if shutil.which("kubectl") is None:
        return "NOT CHECKED: no kubectl; install Debian's kubernetes-client"
    told = subprocess.run(
        ["kubectl", "version", "--client", "--output=json"],
        capture_output=True,
        text=True,
        check=False,
    )
    # Before 1.24 it does not tell; what 1.20 (Debian 12) has inside knows no components.
    if told.returncode or "kustomizeVersion" not in json.loads(told.stdout):
        return "NOT CHECKED: this kubectl is older than 1.24; Debian 13 has a newer one"
    return None


def of_kind(manifests: Iterable[Manifest], *kinds: str) -> list[Manifest]:
    """Return the manifests of these kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def named(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    """Return the one manifest of this kind and name."""
    [found] = [m for m in of_kind(manifests, kind) if m["metadata"]["name"] == name]
    return found


def workloads(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Return everything that has a pod template of our own."""
    return of_kind(manifests, "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")


def pod_of(workload: Manifest) -> Manifest:
    """Return the pod's specification."""
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


def environment(container: Manifest) -> dict[str, str]:
    """Return the variables with a value of their own."""
    return {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def referred(pod: Manifest) -> Iterator[tuple[str, str, bool]]:
    """Give kind, name, and whether it may be missing, of each ConfigMap and Secret that a pod names."""
    for volume in pod.get("volumes", []):
        if "configMap" in volume:
            yield (
                "ConfigMap",
                volume["configMap"]["name"],
                volume["configMap"].get("optional", False),
            )
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], volume["secret"].get("optional", False)
    for container in pod["containers"]:
        assert "envFrom" not in container, "names of variables must be in the manifest"
        for one in container.get("env", []):
            if key := one.get("valueFrom", {}).get("secretKeyRef"):
                yield "Secret", key["name"], key.get("optional", False)
