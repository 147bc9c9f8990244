"""What ships for running servers: parsed, and compared with what the server itself says."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys

import pytest

from retrieval_spec.commands.settings import read_settings
from retrieval_spec.service.metrics import ERRORS, HISTOGRAM, INFO, METRICS, PREFIX
from retrieval_spec.service.server import SERVICE_NAME
from tests.conftest import REPOSITORY

yaml = pytest.importorskip("yaml")
DEPLOY = REPOSITORY / "tools" / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KINDS = {
    "ConfigMap": "v1",
    "Service": "v1",
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "PodDisruptionBudget": "policy/v1",
}


def test_the_tables_of_the_documentation_are_what_the_code_says():
    command = [sys.executable, "tools/server_tables.py", "--check"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_board_shows_metrics_that_exist_and_all_of_them():
    board = json.loads((DEPLOY / "grafana.json").read_text())
    queries = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    shown = set(re.findall(rf"{PREFIX}\w+", queries))
    there = {PREFIX + metric.name for metric in METRICS} | {f"{HISTOGRAM}_bucket", ERRORS, INFO}
    assert shown == there
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.stem)
def objects(request):
    return list(yaml.safe_load_all(request.param.read_text()))


def test_there_are_manifests():
    assert {path.stem for path in MANIFESTS} == {"sidecar", "replicated"}


def pod_of(objects):
    return next(found["spec"]["template"] for found in objects if "template" in found.get("spec", {}))


def server_of(objects):
    return next(one for one in pod_of(objects)["spec"]["containers"] if one["name"] == "drafts")


def settings_of(objects, tmp_path):
    config = next(found for found in objects if found["kind"] == "ConfigMap")
    (tmp_path / "server.toml").write_text(config["data"]["server.toml"])
    return read_settings(str(tmp_path / "server.toml"))


def test_objects_are_of_known_kinds_and_named(objects):
    for found in objects:
        assert KINDS[found["kind"]] == found["apiVersion"]
        assert re.fullmatch(r"[a-z0-9-]+", found["metadata"]["name"])
        if "selector" in found.get("spec", {}):
            selector = found["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            assert wanted.items() <= pod_of(objects)["metadata"]["labels"].items()


def test_probes_ask_the_health_listener_by_grpc(objects, tmp_path):
    said, server = settings_of(objects, tmp_path), server_of(objects)
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert said["health_address"] == f"0.0.0.0:{ports['health']}", "the kubelet comes from outside of the pod"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["grpc"]["port"] == ports["health"]
        assert server[probe]["grpc"].get("service", "") in ("", SERVICE_NAME)
    assert said["metrics_address"].endswith(f":{ports['metrics']}")
    assert pod_of(objects)["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    if "grpc" in ports:
        assert said["listen"].endswith(f":{ports['grpc']}")
    grace_s = pod_of(objects)["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > said["grace_s"] + 1


def test_every_mount_has_a_volume_and_every_file_a_mount(objects, tmp_path):
    pod, said = pod_of(objects)["spec"], settings_of(objects, tmp_path)
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    mounts = tuple(mount["mountPath"] + "/" for mount in server_of(objects)["volumeMounts"])
    files = [said[name] for name in ("tls_certificate", "tls_key", "tokens") if name in said]
    files += [*said.get("datastore", ()), server_of(objects)["args"][1]]
    files += [said["listen"].removeprefix("unix:")] if said["listen"].startswith("unix:") else []
    assert all(file.startswith(mounts) for file in files)


def test_engine_and_sidecar_share_the_socket_and_the_user():
    objects = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "sidecar.yaml").read_text()))
    pod = pod_of(objects)["spec"]
    assert pod["securityContext"]["runAsUser"] == 10001
    sharing = [
        [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "socket"]
        for container in pod["containers"]
    ]
    assert sharing[0] == sharing[1] == ["/run/retrieval-spec"]


def test_the_replicated_set_asks_who_calls(tmp_path):
    objects = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "replicated.yaml").read_text()))
    said = settings_of(objects, tmp_path)
    assert {"tls_certificate", "tls_key", "tokens"} <= set(said)
    assert next(found for found in objects if found["kind"] == "Service")["spec"]["clusterIP"] == "None"
    volumes = pod_of(objects)["spec"]["volumes"]
    modes = [volume["secret"]["defaultMode"] for volume in volumes if "secret" in volume]
    assert modes == [0o440] * 2


def test_the_unit_runs_the_server_as_its_own_user():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "retrieval-spec.service")
    assert " serve --config /etc/retrieval-spec/server.toml" in unit["Service"]["ExecStart"]
    assert unit["Service"]["User"] != "root"
    assert unit["Service"]["NoNewPrivileges"] == "yes"


def test_the_image_copies_what_is_there():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert all((REPOSITORY / name).exists() for names in copied for name in names)
    assert 'ENTRYPOINT ["retrieval-spec", "serve"]' in lines
