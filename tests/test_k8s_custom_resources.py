"""The objects for RabbitMQ's operators and for KEDA: what they say is what the dispatcher needs.

Kubernetes has no schemas for them, and this repository copies none.  Checked against are: the topology in the
code, exactly; what the operators' definitions say of the fields that we use (`tests/tools/custom_resources.yaml`);
and the definitions themselves, where CRDS names folders that hold them (separated by colons).
"""

import os
import re
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from service.broker.topology import Binding, Exchange, Names, Queue, topology
from service.core.address import GLOBAL_UNICAST, SPECIAL
from service.core.ladder import LEVELS
from service.settings import Settings
from tests.tools import custom_resources, manifests
from tests.tools.manifests import HPA, KEDA, Manifest, of_kind
from tests.tools.topology_manifests import PRODUCTION, texts, wanted


@pytest.fixture
def production() -> tuple[Manifest, ...]:
    return manifests.rendered("overlays/production")


@pytest.fixture(scope="session")
def objects(tmp_path_factory) -> list[Manifest]:
    return custom_resources.in_use(tmp_path_factory.mktemp("custom"))


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
            spec.get("arguments", {}),
        )
        for spec in _specs(production, "Binding")
    ]
    assert _sorted(bindings) == _sorted(of.bindings)
    assert {spec["destinationType"] for spec in _specs(production, "Binding")} == {"queue"}
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


def test_the_operators_take_what_they_are_known_to_take(objects):
    known = custom_resources.listed()
    for one in objects:
        assert one.keys() == {"apiVersion", "kind", "metadata", "spec"}
        schema = custom_resources.closed(known[custom_resources.name_of(one)])
        jsonschema.Draft202012Validator(schema).validate(one["spec"])
    assert {custom_resources.name_of(one) for one in objects} == known.keys()


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("Queue", {"deletionPolicy": "keep"}),
        ("Queue", {"durabel": True}),
        ("Permission", {"permissions": {"configure": "", "reed": ""}}),
        ("ScaledObject", {"minReplicaCount": "2"}),
        ("ScaledObject", {"triggers": [{"type": "rabbitmq", "metadata": {"value": 5}}]}),
        ("RabbitmqCluster", {"persistence": {"storage": {"size": "1Gi"}}}),
    ],
)
def test_what_the_operators_would_refuse_is_refused(objects, kind, change):
    one = of_kind(objects, kind)[0]
    schema = custom_resources.closed(custom_resources.listed()[custom_resources.name_of(one)])
    assert not jsonschema.Draft202012Validator(schema).is_valid(one["spec"] | change)


def test_every_object_belongs_to_the_cluster_that_is_there(production, objects):
    [cluster] = of_kind(production, "RabbitmqCluster")
    theirs = of_kind(objects, "Exchange", "Queue", "Binding", "User", "Permission")
    assert theirs
    for manifest in theirs:
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
    # The topology operator refuses, from 1.20 on, credentials in a Secret without this label.
    [labelled] = re.findall(
        r"label secret (.*) rabbitmq\.com/topology-operator=true$", readme, re.MULTILINE
    )
    for spec in users.values():
        assert f"`{spec['importCredentialsSecret']['name']}`" in readme
        assert spec["importCredentialsSecret"]["name"] in labelled.split()
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
    assert 2 <= scaled["spec"]["minReplicaCount"] <= scaled["spec"]["maxReplicaCount"]
    # What it falls back to is what is then there: fewer would be fewer than were needed a moment ago.
    assert scaled["spec"]["fallback"]["replicas"] == scaled["spec"]["maxReplicaCount"]


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
    pods, cache = dns["to"]
    [by_name] = pods["podSelector"]["matchExpressions"]
    assert by_name == {"key": "k8s-app", "operator": "In", "values": ["kube-dns", "node-local-dns"]}
    assert pods["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "kube-system"
    }
    assert cache == {"ipBlock": {"cidr": "169.254.20.10/32"}}  # NodeLocal DNSCache, on the node
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
        str(GLOBAL_UNICAST): [
            str(network)
            for network in SPECIAL
            if isinstance(network, IPv6Network) and network.subnet_of(GLOBAL_UNICAST)
        ],
    }


@pytest.fixture(scope="session")
def definitions() -> custom_resources.Schemas:
    folders = [Path(folder) for folder in os.environ.get("CRDS", "").split(":") if folder]
    if not folders:
        pytest.skip("NOT CHECKED against the whole definitions: CRDS names no folder of theirs")
    return custom_resources.defined(folders)


def test_the_operators_take_it(objects, definitions):
    for one in objects:
        schema = custom_resources.closed(definitions[custom_resources.name_of(one)])
        jsonschema.Draft202012Validator(schema).validate(one["spec"])


def test_what_is_known_of_the_definitions_is_not_stale(objects, definitions):
    why = "stale: python -m tests.tools.custom_resources"
    assert custom_resources.facts(definitions, objects) == custom_resources.listed(), why


def test_all_levels_of_the_ladder_are_there(production):
    names = {spec["name"] for spec in _specs(production, "Queue")}
    assert len([name for name in names if ".delay." in name]) == LEVELS


def test_every_component_is_one_that_a_test_renders():
    there = {path.name for path in (manifests.K8S / "components").iterdir()}
    assert there == {Path(path).name for path in (HPA, KEDA, manifests.BROKER_TLS)}
