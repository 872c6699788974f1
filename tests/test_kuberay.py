"""`examples/kuberay`: what KubeRay's v1 RayService must have, and that its parts agree.

The rules are those of KubeRay's custom resource definition and of the pods that it builds
(ray-project/kuberay, ray-operator/apis/ray/v1 and controllers/ray/common/pod.go).
"""

import json
import re
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.ai_models import load_ai_models
from cluster.bridge.bridge import LAST_ANSWERS_S
from cluster.bridge_settings import GRACE_S, add_bridge_flags
from cluster.placement import Supply, place
from cluster.serve_config import on_ray, serve_config
from cluster.supply import autoscaler_most
from tests.test_examples import PINNED, PROJECT, ROOT, help_of

HERE = ROOT / "examples/kuberay"
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((HERE / "ray-service.yaml").read_text()))
CONFIG_MAP, SERVICE = DOCUMENTS
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
HEAD = CLUSTER["headGroupSpec"]
(GPU_GROUP,) = CLUSTER["workerGroupSpecs"]
RAY_HEAD, BRIDGE = HEAD["template"]["spec"]["containers"]
(RAY_WORKER,) = GPU_GROUP["template"]["spec"]["containers"]
SERVE = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])


def mounts(container: dict[str, Any]) -> dict[str, str]:
    return {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}


def test_it_is_a_ray_service() -> None:
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("ray.io/v1", "RayService")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", SERVICE["metadata"]["name"])
    assert CLUSTER["rayVersion"] == PINNED["ray"]
    for group in (HEAD, GPU_GROUP):
        # `ray start` gets them as its flags, and all of them are text.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert GPU_GROUP["minReplicas"] <= GPU_GROUP["replicas"] <= GPU_GROUP["maxReplicas"]
    assert GPU_GROUP["groupName"]
    # The first container is Ray's.
    assert RAY_HEAD["name"] == "ray-head"
    assert RAY_WORKER["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_volumes_are_those_that_are_mounted() -> None:
    for group, containers in ((HEAD, (RAY_HEAD, BRIDGE)), (GPU_GROUP, (RAY_WORKER,))):
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert volumes == {name for container in containers for name in mounts(container)}


def test_the_serve_config_is_that_of_the_models(tmp_path: Path) -> None:
    ServeDeploySchema.model_validate(SERVE)
    file = tmp_path / "aiModels.json"
    file.write_text(CONFIG_MAP["data"]["aiModels.json"])
    models = on_ray(load_ai_models(str(file)).models)
    gpus = f"{GPU_GROUP['maxReplicas']}x1"
    placement = place(models, supply=Supply(nodes=(), addable=tuple(autoscaler_most(gpus))))
    rendered = serve_config(
        placement,
        models_dir=Path(mounts(RAY_WORKER)["models"]),
        gpus=True,
        autoscaler_gpus=gpus,
    )
    # Through JSON, as a text that was printed and read again.
    # KubeRay takes a worker's pod for ready once Serve's proxy in it says so.
    assert json.loads(json.dumps(rendered)) | {"proxy_location": "EveryNode"} == SERVE


def test_no_replica_wants_more_gpus_than_the_group_may_have() -> None:
    wanted = sum(
        deployment["autoscaling_config"]["max_replicas"]
        * deployment["ray_actor_options"]["num_gpus"]
        for application in SERVE["applications"]
        for deployment in application["deployments"]
    )
    assert wanted <= GPU_GROUP["maxReplicas"]


def test_the_bridge_is_on_the_head_and_may_talk_to_it() -> None:
    assert BRIDGE["command"] == ["livepeer-ray", "bridge"]
    environment = {entry["name"]: entry for entry in BRIDGE["env"]}
    accepted = help_of(*BRIDGE["command"])
    assert all(f"[{name}]" in accepted for name in environment if name.startswith("LIVEPEER_RAY_"))
    assert HEAD["template"]["spec"]["shareProcessNamespace"]
    for name, path in (("ray", "/tmp/ray"), ("shm", "/dev/shm")):
        assert mounts(BRIDGE)[name] == mounts(RAY_HEAD)[name] == path
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": "livepeer-ray"}
    token = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert token == {"name": "livepeer-ray", "key": "auth_token"}
    volumes = {volume["name"]: volume for volume in HEAD["template"]["spec"]["volumes"]}
    (secret,) = volumes["secret"]["secret"]["items"]
    assert environment["LIVEPEER_RAY_ORCH_SECRET"]["value"] == (
        f"{mounts(BRIDGE)['secret']}/{secret['path']}"
    )
    assert environment["LIVEPEER_RAY_AI_MODELS"]["value"] == f"{mounts(BRIDGE)['config']}/{NAME}"


def test_the_bridge_has_time_for_its_jobs_and_keeps_its_journal() -> None:
    patience_s = HEAD["template"]["spec"]["terminationGracePeriodSeconds"]
    assert patience_s > GRACE_S + LAST_ANSWERS_S + 10
    parser = ArgumentParser()
    add_bridge_flags(parser)
    # A volume outlives the container. Ray's image has this home.
    journal = parser.parse_args([]).state_dir.replace("~", "/home/ray")
    assert journal == mounts(BRIDGE)["state"]


(NAME,) = CONFIG_MAP["data"]


def test_the_image_has_the_pinned_versions() -> None:
    dockerfile = (HERE / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{PINNED['ray']}-py311" in dockerfile
    assert "--constraint /home/ray/livepeer-ray/constraints.txt" in dockerfile
    images = {container["image"] for container in (RAY_HEAD, BRIDGE, RAY_WORKER)}
    assert images == {f"livepeer-ray:{PROJECT['version']}"}
