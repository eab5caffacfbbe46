"""The objects for RabbitMQ's operators and for KEDA: what they say is what the dispatcher needs.

Kubernetes has no schemas for them, and this repository copies none.  Checked against are: the topology in the
code, exactly; a list of the fields that we use, kept by hand; for KEDA the models of a package, where it is
installed; and the definitions themselves, where CRDS names folders that hold them (separated by colons).
"""

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from service.broker.topology import Binding, Exchange, Names, Queue, topology
from service.core.address import SPECIAL
from service.core.ladder import LEVELS
from service.settings import Settings
from tests.tools import manifests
from tests.tools.manifests import HPA, KEDA, Manifest, of_kind
from tests.tools.topology_manifests import PRODUCTION, texts, wanted

RABBITMQ = "rabbitmq.com/v1beta1"
FIELDS: dict[tuple[str, str], set[str]] = {
    (RABBITMQ, "RabbitmqCluster"): {
        *("replicas", "image", "persistence", "resources", "rabbitmq", "override", "tls"),
        "terminationGracePeriodSeconds",
    },
    (RABBITMQ, "Exchange"): {"name", "type", "durable", "arguments", "rabbitmqClusterReference"},
    (RABBITMQ, "Queue"): {
        *("name", "type", "durable", "arguments", "deletionPolicy", "rabbitmqClusterReference"),
    },
    (RABBITMQ, "Binding"): {
        *("source", "destination", "destinationType", "routingKey", "rabbitmqClusterReference"),
    },
    (RABBITMQ, "User"): {"importCredentialsSecret", "rabbitmqClusterReference"},
    (RABBITMQ, "Permission"): {
        *("vhost", "userReference", "permissions", "rabbitmqClusterReference"),
    },
    ("keda.sh/v1alpha1", "ScaledObject"): {
        *("scaleTargetRef", "pollingInterval", "minReplicaCount", "maxReplicaCount"),
        *("fallback", "advanced", "triggers"),
    },
    ("keda.sh/v1alpha1", "TriggerAuthentication"): {"secretTargetRef"},
}
"""Every kind that is not Kubernetes' own, with the fields of its `spec` that we use."""


@pytest.fixture
def production() -> tuple[Manifest, ...]:
    return manifests.rendered("overlays/production")


def custom(everything: tuple[Manifest, ...]) -> list[Manifest]:
    groups = {version for version, _ in FIELDS}
    return [manifest for manifest in everything if manifest["apiVersion"] in groups]


def test_the_generated_files_are_not_stale():
    for name, text in texts(wanted()).items():
        why = "stale: python -m tests.tools.topology_manifests"
        assert (PRODUCTION / name).read_text() == text, why


def test_the_objects_are_the_topology_of_the_code_and_nothing_else(production):
    of = wanted()
    exchanges = [
        Exchange(spec["name"], spec["type"], spec.get("arguments", {}))
        for spec in _specs(production, "Exchange")
    ]
    assert _sorted(exchanges) == _sorted([of.events, *of.exchanges])
    queues = [
        Queue(spec["name"], {"x-queue-type": spec["type"], **spec.get("arguments", {})})
        for spec in _specs(production, "Queue")
    ]
    assert _sorted(queues) == _sorted(of.queues)
    bindings = [
        Binding(
            spec["source"],
            spec["destination"],
            spec.get("routingKey", ""),
            to_exchange=spec["destinationType"] == "exchange",
        )
        for spec in _specs(production, "Binding")
    ]
    assert _sorted(bindings) == _sorted(of.bindings)
    for kind in ("Exchange", "Queue"):
        assert all(spec["durable"] is True for spec in _specs(production, kind))


def _specs(everything: tuple[Manifest, ...], kind: str) -> list[dict[str, Any]]:
    return [manifest["spec"] for manifest in of_kind(everything, kind)]


def _sorted(values: Any) -> list[Any]:
    return sorted(values, key=repr)


def test_bindings_that_differ_only_in_their_keys_have_names_of_their_own():
    settings = Settings(bindings=("order.*", "payment.#", "x"))
    of = topology("p", "events", settings.bindings)
    found = [
        one for text in texts(of).values() for one in yaml.safe_load_all(text) if one is not None
    ]
    names = [(one["kind"], one["metadata"]["name"]) for one in found]
    assert len(set(names)) == len(names)
    keys = {one["spec"].get("routingKey") for one in found if one["kind"] == "Binding"}
    assert set(settings.bindings) <= keys


def test_no_field_is_there_that_is_not_on_the_list(production):
    for manifest in custom(production):
        known = FIELDS[manifest["apiVersion"], manifest["kind"]]
        assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
        assert manifest["spec"].keys() <= known, manifest["metadata"]["name"]


def test_every_object_belongs_to_the_cluster_that_is_there(production):
    [cluster] = of_kind(production, "RabbitmqCluster")
    for manifest in custom(production):
        if "rabbitmqClusterReference" in FIELDS[manifest["apiVersion"], manifest["kind"]]:
            reference = manifest["spec"]["rabbitmqClusterReference"]
            assert reference == {"name": cluster["metadata"]["name"]}


def test_the_broker_is_three_nodes_apart_from_each_other(production):
    [cluster] = of_kind(production, "RabbitmqCluster")
    assert cluster["spec"]["replicas"] == 3
    pod = cluster["spec"]["override"]["statefulSet"]["spec"]["template"]["spec"]
    apart = {
        one["topologyKey"]: one["whenUnsatisfiable"] for one in pod["topologySpreadConstraints"]
    }
    assert apart["kubernetes.io/hostname"] == "DoNotSchedule"


def test_every_user_has_one_permission_and_credentials_that_the_readme_tells_of(production):
    readme = (manifests.K8S / "README.md").read_text()
    users = {user["metadata"]["name"]: user["spec"] for user in of_kind(production, "User")}
    permitted = [spec["userReference"]["name"] for spec in _specs(production, "Permission")]
    assert sorted(permitted) == sorted(users)
    for spec in users.values():
        assert f"`{spec['importCredentialsSecret']['name']}`" in readme
    for spec in _specs(production, "Permission"):
        assert spec["permissions"]["configure"] == "^$"


def test_keda_looks_at_the_queues_that_are_worked_on(production):
    [scaled] = of_kind(production, "ScaledObject")
    names = Names(Settings().prefix)
    triggers = scaled["spec"]["triggers"]
    assert [t["metadata"]["queueName"] for t in triggers] == [names.intake, names.deliveries]
    [authentication] = of_kind(production, "TriggerAuthentication")
    for trigger in triggers:
        assert (trigger["type"], trigger["metadata"]["mode"]) == ("rabbitmq", "QueueLength")
        assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
        assert isinstance(trigger["metadata"]["value"], str)
    [deployment] = of_kind(production, "Deployment")
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaled["spec"]["minReplicaCount"] >= 2


def test_one_autoscaler_at_a_time(production, tmp_path):
    with_hpa = manifests.rendered(str(manifests.production_with(tmp_path, HPA)))
    for everything in (production, with_hpa):
        assert len(of_kind(everything, "ScaledObject", "HorizontalPodAutoscaler")) == 1
    [hpa] = of_kind(with_hpa, "HorizontalPodAutoscaler")
    [scaled] = of_kind(production, "ScaledObject")
    for least, most in (("minReplicas", "minReplicaCount"), ("maxReplicas", "maxReplicaCount")):
        assert hpa["spec"][least] == scaled["spec"][most]


def test_the_network_policy_allows_the_broker_dns_the_targets_and_the_scraper(production):
    [policy] = of_kind(production, "NetworkPolicy")
    assert sorted(policy["spec"]["policyTypes"]) == ["Egress", "Ingress"]
    [scraper] = policy["spec"]["ingress"]
    assert scraper["ports"] == [{"protocol": "TCP", "port": "admin"}]
    assert all({"namespaceSelector", "podSelector"} <= one.keys() for one in scraper["from"])
    dns, broker, targets = policy["spec"]["egress"]
    assert {(p["protocol"], p["port"]) for p in dns["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert {p["port"] for p in broker["ports"]} == {5671, 5672}
    assert broker["to"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "rabbitmq"}
    [deployment] = of_kind(production, "Deployment")
    told = manifests.environment(manifests.pod_of(deployment)["containers"][0])
    assert {str(p["port"]) for p in targets["ports"]} == set(
        told["DISPATCHER_EGRESS_PORTS"].split(",")
    )


def test_the_network_policy_forbids_what_the_dispatcher_forbids(production):
    [policy] = of_kind(production, "NetworkPolicy")
    blocks = {
        one["ipBlock"]["cidr"]: one["ipBlock"]["except"]
        for one in policy["spec"]["egress"][2]["to"]
    }
    assert blocks == {
        "0.0.0.0/0": [str(network) for network in SPECIAL if network.version == 4],
        "::/0": [str(network) for network in SPECIAL if network.version == 6],
    }


def test_keda_takes_it(production):
    keda = pytest.importorskip(
        "cloudcoil.models.keda.v1alpha1",
        reason="NOT CHECKED against KEDA's schema: cloudcoil-models-keda is not installed",
    )
    found = of_kind(production, "ScaledObject", "TriggerAuthentication")
    assert found
    for manifest in found:
        model = getattr(keda, manifest["kind"]).model_validate(manifest)
        # What the schema does not know is dropped on the way.
        again = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
        assert again == manifest


@pytest.fixture(scope="session")
def definitions() -> dict[tuple[str, str], dict[str, Any]]:
    """The schemas of custom resources, by API version and kind."""
    folders = [Path(folder) for folder in os.environ.get("CRDS", "").split(":") if folder]
    if not folders:
        pytest.skip("NOT CHECKED against the operators' schemas: CRDS names no folder of theirs")
    found = {}
    for file in (file for folder in folders for file in folder.rglob("*.yaml")):
        for definition in yaml.safe_load_all(file.read_text()):
            if (
                isinstance(definition, dict)
                and definition.get("kind") == "CustomResourceDefinition"
            ):
                spec = definition["spec"]
                for version in spec["versions"]:
                    key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                    found[key] = _closed(version["schema"]["openAPIV3Schema"])
    return found


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a structural schema in which a field that is not listed is an error, as for `kubectl`."""
    closed = dict(schema)
    if closed.get("x-kubernetes-int-or-string"):
        closed = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    if "properties" in closed:
        closed["properties"] = {name: _closed(one) for name, one in closed["properties"].items()}
        if not closed.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    if isinstance(closed.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(closed["additionalProperties"])
    if "items" in closed:
        closed["items"] = _closed(closed["items"])
    return closed


@pytest.mark.parametrize(("version", "kind"), FIELDS, ids=lambda value: str(value).split("/")[0])
def test_the_operators_take_it(production, definitions, version, kind):
    if (version, kind) not in definitions:
        pytest.skip(f"NOT CHECKED: CRDS has no definition of {version} {kind}")
    validator = jsonschema.Draft202012Validator(definitions[version, kind])
    found = [m for m in production if (m["apiVersion"], m["kind"]) == (version, kind)]
    assert found
    for manifest in found:
        validator.validate(manifest | {"metadata": {}})


def test_all_levels_of_the_ladder_are_there(production):
    names = {spec["name"] for spec in _specs(production, "Queue")}
    assert len([name for name in names if ".delay." in name]) == LEVELS


def test_every_component_is_one_that_a_test_renders():
    there = {path.name for path in (manifests.K8S / "components").iterdir()}
    assert there == {Path(path).name for path in (HPA, KEDA, manifests.BROKER_TLS)}
