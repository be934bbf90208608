"""The manifests are what Kubernetes takes, fit together, and run what the programs take."""

import re
import shutil
import subprocess

import pytest
import yaml

from hfchat.config import parse
from hfchat.serving import server
from hfchat.serving.collecting import feedback
from hfchat.training.pretrain_arguments import PretrainArguments
from tests.conftest import ROOT
from tests.deploy.conftest import taken

KUBERNETES = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.30", "1.37")  # the oldest with a pause before a container ends (`preStop.sleep`), and the newest known
OVERLAYS = ("cpu", "vllm")
SELECTING = ("Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment")


def documents(file):
    return [one for one in yaml.safe_load_all(file.read_text(encoding="utf-8")) if one is not None]


def kustomization(folder):
    return yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))


FILES = [KUBERNETES / "training" / "job.yaml", KUBERNETES / "add-model" / "pod.yaml"] + [
    folder / name
    for folder in (KUBERNETES / "base", *sorted((KUBERNETES / "components").iterdir()))
    for name in kustomization(folder)["resources"]
]
RESOURCES = [one for file in FILES for one in documents(file)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The manifests, with the secrets that a user makes of the examples."""
    folder = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    ignored = shutil.ignore_patterns("api-keys", "feedback.env")
    shutil.copytree(KUBERNETES, folder, ignore=ignored)
    for example in (folder / "base" / "secrets").glob("*.example"):
        example.rename(example.with_suffix(""))
    return folder


def read(checkout, overlay):
    """The objects of an overlay as they are in the files, with what its generators make but without its patches."""
    folders = [checkout / "base"]
    folders += [(checkout / "overlays" / overlay / path).resolve() for path in named(checkout, overlay, "components")]
    objects = [
        one for folder in folders for name in kustomization(folder)["resources"] for one in documents(folder / name)
    ]
    base = kustomization(checkout / "base")
    for settings in base["configMapGenerator"]:
        data = dict(line.split("=", 1) for line in settings["literals"])
        objects.append({"kind": "ConfigMap", "metadata": {"name": settings["name"]}, "data": data})
    for secret in base["secretGenerator"]:
        names = [name.rpartition("/")[2] for name in secret.get("files", [])]
        for env in secret.get("envs", []):
            names += [line.partition("=")[0] for line in (checkout / "base" / env).read_text().splitlines()]
        objects.append({"kind": "Secret", "metadata": {"name": secret["name"]}, "data": dict.fromkeys(names, "")})
    for one in objects:
        if (pod := pod_of(one)) is not None:  # as the kustomizations' `labels` do
            pod["metadata"]["labels"]["app.kubernetes.io/part-of"] = "hfchat"
    return objects


def named(checkout, overlay, key):
    return kustomization(checkout / "overlays" / overlay)[key]


def build(folder):
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl is installed")
    built = subprocess.run([program, "kustomize", folder], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


@pytest.fixture(
    scope="module", params=[(way, overlay) for way in ("files", "built") for overlay in OVERLAYS], ids="-".join
)
def objects(request, checkout):
    """All objects of an overlay, as they are in the files, and as `kubectl kustomize` builds them."""
    way, overlay = request.param
    return read(checkout, overlay) if way == "files" else build(checkout / "overlays" / overlay)


def pod_of(one):
    """The pod template of an object, None if it has none."""
    spec = one.get("spec", {})
    return spec.get("template") or spec.get("jobTemplate", {}).get("spec", {}).get("template")


def pods(objects):
    return {one["metadata"]["name"]: pod for one in objects if (pod := pod_of(one)) is not None}


def of_kind(objects, *kinds):
    return [one for one in objects if one["kind"] in kinds]


def matches(selector, labels):
    wanted = selector.get("matchLabels", {})
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return wanted.items() <= labels.items() and all(labels.get(one["key"]) in one["values"] for one in expressions)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("one", RESOURCES, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_takes_a_file(one, version):
    validation = pytest.importorskip("kubernetes_validate")
    validation.validate(one, version, strict=True)
    assert "namespace" not in one["metadata"]  # that is for `kubectl --namespace` to say


def test_kubernetes_takes_what_is_built(objects):
    validation = pytest.importorskip("kubernetes_validate")
    for one in objects:
        if "apiVersion" in one:  # not what stands in for a generator
            validation.validate(one, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("folder", ["add-model", "monitoring", "training"])
def test_what_stands_alone_is_built(folder, checkout):
    assert build(checkout / folder)


def test_every_file_belongs_to_a_kustomization():
    used = {*FILES, *(file.parent / "kustomization.yaml" for file in FILES)}
    for file in KUBERNETES.rglob("kustomization.yaml"):
        listed = kustomization(file.parent)
        used |= {file, *((file.parent / name).resolve() for name in listed.get("resources", []))}
        used |= {file.parent / patch["path"] for patch in listed.get("patches", []) if "path" in patch}
        assert all(
            (file.parent / name).resolve().exists()
            for key in ("resources", "components")
            for name in listed.get(key, [])
        )
    used.add(KUBERNETES / "monitoring" / "prometheus-adapter.values.yaml")  # for Helm
    assert {*KUBERNETES.rglob("*.yaml")} <= used


def test_selectors_select(objects):
    labels = [pod["metadata"]["labels"] for pod in pods(objects).values()]
    for one in of_kind(objects, *SELECTING):
        spec = one["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        if one["kind"] == "Service":
            selector = {"matchLabels": selector}
        assert any(matches(selector, given) for given in labels), one["metadata"]["name"]
        if one["kind"] == "Deployment":
            assert matches(selector, pod_of(one)["metadata"]["labels"])
        for rule in (*spec.get("ingress", []), *spec.get("egress", [])) if one["kind"] == "NetworkPolicy" else ():
            for peer in (*rule.get("from", []), *rule.get("to", [])):
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    assert any(matches(peer["podSelector"], given) for given in labels)


def test_nothing_is_reachable_that_no_policy_names(objects):
    policies = [policy["spec"] for policy in of_kind(objects, "NetworkPolicy")]
    for name, pod in pods(objects).items():
        denied = {
            kind
            for policy in policies
            if matches(policy["podSelector"], pod["metadata"]["labels"])
            for kind in policy["policyTypes"]
        }
        assert {"Ingress", "Egress"} <= denied, name


@pytest.mark.parametrize("file", ["add-model/pod.yaml", "training/job.yaml"])
def test_what_is_applied_beside_the_overlays_is_denied_as_well(file):
    for one in documents(KUBERNETES / file):
        pod = one if one["kind"] == "Pod" else pod_of(one)
        if pod is not None:
            assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "hfchat"


def test_no_rule_opens_a_port_to_everywhere_but_https(objects):
    policies = [*of_kind(objects, "NetworkPolicy"), *of_kind(documents(FILES[0]), "NetworkPolicy")]
    rules = [rule for policy in policies for rule in policy["spec"].get("egress", ())]
    open_ports = {port["port"] for rule in rules if not rule.get("to") for port in rule["ports"]}
    assert open_ports <= {443}


def test_vllm_does_not_run_the_code_of_a_model(objects):
    images = [container["image"] for pod in pods(objects).values() for container in pod["spec"]["containers"]]
    for image in images:
        if image.startswith("vllm/"):
            version = re.fullmatch(r"vllm/vllm-openai:v([\d.]+)(@sha256:[0-9a-f]{64})?", image)[1]
            assert tuple(map(int, version.split("."))) >= (0, 19, 0)  # CVE-2026-22807, CVE-2026-34756


def test_ports_that_are_named_are_there(objects):
    for pod in pods(objects).values():
        for container in pod["spec"]["containers"]:
            names = {port["name"] for port in container.get("ports", [])}
            probes = [container[key] for key in container if key.endswith("Probe")]
            assert all(probe["httpGet"]["port"] in names for probe in probes)
    for one in of_kind(objects, "Service", "NetworkPolicy"):
        spec = one["spec"]
        selector = spec.get("podSelector") or {"matchLabels": spec["selector"]}
        chosen = [pod for pod in pods(objects).values() if matches(selector, pod["metadata"]["labels"])]
        ports = {
            port
            for pod in chosen
            for container in pod["spec"]["containers"]
            for port in container.get("ports", [])
            for port in (port["name"], port["containerPort"])
        }
        wanted = [port["targetPort"] for port in spec.get("ports", [])]
        wanted += [port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]]
        assert {*wanted} <= ports


def test_secrets_settings_and_volumes_are_there(objects):
    kept = {(one["kind"], one["metadata"]["name"]): {*one.get("data", {})} for one in objects}
    for pod in pods(objects).values():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", []):
                if secret := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert secret["key"] in kept["Secret", secret["name"]]
            for source in container.get("envFrom", []):
                assert kept["ConfigMap", source["configMapRef"]["name"]]
            assert {mount["name"] for mount in container["volumeMounts"]} == {*volumes}
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in kept
            if secret := volume.get("secret"):
                assert kept["Secret", secret["secretName"]]


def test_pods_are_restricted(objects):
    """As the Pod Security Standard `restricted` wants it, and with a root file system that nobody writes."""
    found = pods(objects)
    assert {"hfchat", "hfchat-improve", "hfchat-feedback-report"} <= found.keys()
    for pod in (
        *found.values(),
        *(pod_of(one) for one in documents(KUBERNETES / "training" / "job.yaml") if pod_of(one)),
    ):
        context = pod["spec"]["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 1000)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def arguments(container, objects):
    """Those of a container, with the variables of its settings filled in as Kubernetes does."""
    names = [source["configMapRef"]["name"] for source in container.get("envFrom", [])]
    values = {
        key: value
        for one in of_kind(objects, "ConfigMap")
        if one["metadata"]["name"] in names
        for key, value in one["data"].items()
    }
    values |= {variable["name"]: variable.get("value", "1") for variable in container.get("env", [])}
    return [re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], word) for word in container["args"]]


def test_every_container_runs_what_the_program_takes(objects):
    programs = [
        container
        for pod in pods(objects).values()
        for container in pod["spec"]["containers"]
        if container["command"] == ["hfchat"]
    ]
    assert len(programs) == 3
    for container in programs:
        taken(arguments(container, objects))


def test_the_server_is_set_up_for_a_cluster(objects, settings_of):
    pod = pods(objects)["hfchat"]["spec"]
    (container,) = pod["containers"]
    settings = settings_of(arguments(container, objects))
    assert settings.port == container["ports"][0]["containerPort"]
    assert (settings.host, settings.served_model_name, settings.allow_anyone) == ("0.0.0.0", "assistant", False)
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounted[settings.api_keys.rpartition("/")[0]] == "api-keys"
    if not settings.upstreams:
        assert settings.model.startswith("/data/")
        assert "/data" in mounted
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = before + settings.drain_seconds + server._LAST_WORDS_S + feedback._MAX_CLOSING_S
    assert pod["terminationGracePeriodSeconds"] >= needed
    paths = {key: container[key]["httpGet"]["path"] for key in ("readinessProbe", "livenessProbe")}
    assert paths == {"readinessProbe": "/ready", "livenessProbe": "/health"}


def test_the_upstream_is_where_the_server_looks(checkout, settings_of):
    objects = build(checkout / "overlays" / "vllm")
    (container,) = pods(objects)["hfchat"]["spec"]["containers"]
    settings = settings_of(arguments(container, objects))
    (service,) = [one for one in of_kind(objects, "Service") if one["metadata"]["name"] == "vllm"]
    assert settings.upstreams == (f"http://vllm:{service['spec']['ports'][0]['port']}/v1",)
    (upstream,) = pods(objects)["vllm"]["spec"]["containers"]
    assert upstream["args"][upstream["args"].index("--served-model-name") + 1] == settings.upstream_model
    assert not any("persistentVolumeClaim" in volume for volume in pods(objects)["hfchat"]["spec"]["volumes"])


def test_replicas_are_added_by_what_the_server_counts(objects, counted):
    adapter = yaml.safe_load(
        (KUBERNETES / "monitoring" / "prometheus-adapter.values.yaml").read_text(encoding="utf-8")
    )
    rules = {rule["name"]["as"]: rule for rule in adapter["rules"]["custom"]}
    scalers = of_kind(objects, "HorizontalPodAutoscaler")
    assert scalers
    for scaler in scalers:
        target = scaler["spec"]["scaleTargetRef"]
        (deployment,) = [one for one in of_kind(objects, "Deployment") if one["metadata"]["name"] == target["name"]]
        assert "replicas" not in deployment["spec"]
        for metric in scaler["spec"]["metrics"]:
            asked = metric.get("pods") or metric["object"]
            rule = rules[asked["metric"]["name"]]
            assert rule["seriesQuery"].partition("{")[0] in counted
            resources = {one["resource"] for one in rule["resources"]["overrides"].values()}
            assert {
                "namespace",
                asked["describedObject"]["kind"].lower() if "describedObject" in asked else "pod",
            } <= resources
            if "describedObject" in asked:
                assert asked["describedObject"]["name"] in {
                    one["metadata"]["name"] for one in of_kind(objects, asked["describedObject"]["kind"])
                }


def test_prometheus_finds_the_server(objects):
    (monitor,) = documents(KUBERNETES / "monitoring" / "service-monitor.yaml")
    (service,) = [one for one in of_kind(objects, "Service") if one["metadata"]["name"] == "hfchat"]
    assert matches(monitor["spec"]["selector"], service["metadata"]["labels"])
    assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_the_training_meets_at_its_first_pod():
    from accelerate.commands.launch import launch_command_parser

    _, service, job, _ = documents(KUBERNETES / "training" / "job.yaml")
    pod = job["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["accelerate", "launch"]
    args = launch_command_parser().parse_args(arguments(container, []))
    machines = job["spec"]["completions"]
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert (args.num_machines, args.num_processes) == (machines, machines * gpus)
    assert job["spec"]["parallelism"] == machines
    assert args.main_process_ip == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert service["metadata"]["name"] == pod["spec"]["subdomain"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert args.main_process_port == container["ports"][0]["containerPort"]
    assert container["args"][container["args"].index("--machine_rank") + 1] == "$(MACHINE_RANK)"
    assert (ROOT / args.config_file).is_file()
    assert (ROOT / args.training_script).is_file()
    (parsed,) = parse(PretrainArguments, argv=args.training_script_args)
    assert parsed.output_dir.startswith("/data/")
    shutdown = next(int(one["value"]) for one in container["env"] if one["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    assert pod["spec"]["terminationGracePeriodSeconds"] > shutdown
