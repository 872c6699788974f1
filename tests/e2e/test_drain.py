"""A machine leaves the cluster with a job on it, which is answered."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray import serve

from cluster import ray_cluster, serve_client
from cluster.ai_models import load_ai_models
from cluster.placement import place
from cluster.serve_config import serve_config
from cluster.status import document, table
from cluster.supply import supply
from tests.e2e.conftest import SECRET, Gateway, Orchestrator, RayCluster, running_ray
from tests.e2e.programs import PATIENCE_S, livepeer_ray

MODEL = "org/held"


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[RayCluster]:
    """Two machines with a GPU each beside the head, and a model on one of them."""
    file = tmp_path / "aiModels.json"
    entry = {"pipeline": "text-to-image", "model_id": MODEL, "warm": True}
    file.write_text(json.dumps([{**entry, "ray": {"max_replicas": 1}}]))
    with running_ray(gpus=(0, 1, 1)) as cluster:
        ray_cluster.connect(cluster.address)
        try:
            placement = place(
                load_ai_models(file).models, supply=supply(ray_cluster.node_resources(), [])
            )
            config = serve_config(placement, models_dir=tmp_path, gpus=True)
            config["applications"][0]["import_path"] = "tests.fake_model:build_held"
            serve_client.deploy(config)
            yield cluster
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def where() -> set[str]:
    """The nodes of the replicas that take jobs."""
    (status,) = serve_client.model_status(
        load_ai_models(f"text-to-image:{MODEL}:true").models
    ).values()
    return {node for _, node in status.replicas}


async def test_a_node_is_drained_under_a_job(
    orchestrator: Orchestrator, gateway: Gateway, two_nodes: RayCluster, tmp_path: Path
) -> None:
    flags = (
        *("--orch-addr", orchestrator.address),
        *("--ray-address", two_nodes.address),
        *("--ai-models", str(tmp_path / "aiModels.json")),
        *("--state-listen", "none"),
    )
    async with livepeer_ray("bridge", *flags, secret=SECRET) as bridge:
        await orchestrator.advertises({MODEL: 1})
        (node,) = where()
        go_on = tmp_path / "go-on"
        asked = asyncio.create_task(gateway.text_to_image(model_id=MODEL, prompt=str(go_on)))
        await orchestrator.has_a_job_out()

        async with livepeer_ray("drain", node, "--ray-address", two_nodes.address) as drain:
            await drain.says(r"^draining .* finishes those that it has")
            await bridge.says("no capacity: leaving")
            assert [each["GPU"] for each in ray_cluster.node_resources() if "GPU" in each] == [1]
            status = document(applications={}, nodes=ray_cluster.nodes(), bridge=None)
            (draining,) = (each for each in status["nodes"] if each["draining"])
            assert draining["id"] == node
            assert "draining" in table(status)

            # Its successor runs while the job does.
            await orchestrator.advertises({MODEL: 1})
            assert where().isdisjoint({node})
            assert not asked.done()
            assert drain.process.returncode is None

            go_on.write_text("")
            assert (await asked)[0] == 200
            assert await drain.ends() == 0, drain.output
            await drain.says("has left the cluster and can be switched off$")
        async with asyncio.timeout(PATIENCE_S):
            while node in {each["NodeID"] for each in ray_cluster.nodes()}:
                await asyncio.sleep(0.1)
        assert (await gateway.text_to_image(model_id=MODEL, prompt=str(go_on)))[0] == 200
        assert "running it again" not in bridge.output
