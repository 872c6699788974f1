"""Keeps a cluster's Serve applications those that the aiModels.json asks for.

`Reconciler.step` compares and deploys what differs. It is asked again and again, so whatever
changed is seen at the next step: the file, the GPUs of the cluster, applications that somebody
removed or that went with a Serve that was shut down.

Order of a change: new and changed models are deployed at once; models that left the file stay
for `LEAVE_S`, in which the bridge, which follows the same file, stops advertising them. Their
running jobs are finished by Serve, whose replicas shut down gracefully (`deployments.app`).
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import ray_cluster, serve_client
from cluster.ai_models import AIModel
from cluster.errors import ConfigError
from cluster.http_api import HTTPSettings
from cluster.placement import UNBOUNDED, Lacking, Placement, place
from cluster.serve_config import app_name, on_ray, serve_config
from cluster.settings import Device
from cluster.supply import autoscaler_most, known_most, supply
from deployments.ingress.config import Token

logger = logging.getLogger(__name__)

LEAVE_S = 5.0
"""For the bridge to look at the file (1 s), to register anew (0.5 s to bundle changes, and a
handshake of as long) and to close the old registration once it is quiet."""


class Reconciler:
    """What was deployed, and what has to be said about it only once."""

    def __init__(
        self,
        *,
        models_dir: Path,
        device: Device,
        autoscaler_gpus: str | None = None,
        http: HTTPSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Deploys nothing yet; see `step`.

        Args:
            models_dir: Hugging Face cache, at the same path on every node.
            device: where models run.
            autoscaler_gpus: the setting of that name (`cluster.supply`).
            http: the HTTP API, None for none.
            clock: in seconds.

        Raises:
            ConfigError: `autoscaler_gpus` makes no sense.
        """
        self._models_dir = models_dir
        self._device = device
        autoscaler_most(autoscaler_gpus)
        self._autoscaler_gpus = autoscaler_gpus
        self._http, self._http_checked = http, False
        self._clock = clock
        self._gpus: bool | None = None
        self._supply, self._away = UNBOUNDED, False
        """The GPUs that the cluster had last, and whether they are gone."""
        self._lacking: tuple[Lacking, ...] = ()
        self._deployed: dict[str, Any] | None = None
        self._leaving: dict[str, float] = {}
        """Since when they are not wanted any more."""
        self._retried: set[str] = set()
        self._too_early = False

    def step(self, models: Sequence[AIModel], *, retry_failed: bool = False) -> bool:
        """Deploys if the cluster is not as it should be.

        Args:
            models: the aiModels.json.
            retry_failed: start those anew that Serve has given up. Serve itself does not try
                again when the same application is deployed again; what failed for want of its
                files has to be removed first.

        Returns:
            Whether anything was deployed.

        Raises:
            RayError: the cluster does not answer.
        """
        if not self._http_checked:
            self._http, self._http_checked = _usable(self._http), True
        there = serve_client.details()["applications"]
        placement = self._place(models, there)
        if self.held:
            return False
        config = serve_config(
            placement,
            models_dir=self._models_dir,
            gpus=bool(self._gpus),
            autoscaler_gpus=self._autoscaler_gpus,
            http=self._http,
        )
        wanted = {application["name"] for application in config["applications"]}
        alive = {node["NodeID"] for node in ray_cluster.nodes()}
        # Serve sees a second later that a machine is lost. Told before to have fewer replicas, it
        # may well end those that are left.
        self._too_early = not _nodes_of_replicas(there) <= alive
        config["applications"] += self._staying(wanted, there)
        if retry_failed:
            self._retried |= _given_up(models)
        # Until they are gone; the step after that deploys them anew.
        self._retried &= there.keys()
        config["applications"] = [
            application
            for application in config["applications"]
            if application["name"] not in self._retried
        ]
        unchanged = config == self._deployed and wanted - self._retried <= there.keys()
        if unchanged or self._too_early:
            return False
        self._say(config, there)
        serve_client.deploy(config)
        self._deployed = config
        return True

    def renew_tokens(self, tokens: tuple[Token, ...]) -> None:
        """Has the next step deploy other tokens of the HTTP API."""
        if self._http is not None:
            self._http = replace(self._http, tokens=tokens)

    def _say(self, config: Mapping[str, Any], there: Mapping[str, Any]) -> None:
        ours = (
            {app["name"]: app for app in self._deployed["applications"]} if self._deployed else {}
        )
        for application in config["applications"]:
            name = application["name"]
            if name not in there:
                logger.info("deploying %s", name)
            elif application != ours.get(name, there[name]["deployed_app_config"]):
                logger.info("deploying %s, which has changed", name)
        for name in sorted(self._retried):
            logger.info("trying %s again, which Serve has given up", name)

    @property
    def held(self) -> bool:
        """Whether nothing is deployed before the cluster has GPUs again.

        Whoever kept the cluster before us knew which models had one; we do not.
        """
        return self._away and self._deployed is None

    @property
    def waiting(self) -> bool:
        """Whether a further step is needed, before the cluster is as it should be."""
        return bool(self._leaving or self._retried or self._too_early)

    def _staying(self, wanted: set[str], there: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The applications that have to leave, and may stay a little longer."""
        now = self._clock()
        for name in there.keys() - wanted:
            self._leaving.setdefault(name, now)
        for name in self._leaving.keys() - (there.keys() - wanted):
            del self._leaving[name]
        return [
            config
            for name, since in self._leaving.items()
            if now - since < LEAVE_S and (config := there[name]["deployed_app_config"])
        ]

    def _place(self, models: Sequence[AIModel], there: Mapping[str, Any]) -> Placement:
        """What fits on the cluster as it is now; what does not is said when that changes."""
        # By whoever kept the cluster before us.
        had_some = self._deployed is None and self._device is not Device.CPU and _on_gpus(there)
        self._gpus = had_some or self._gpus
        most = known_most(self._autoscaler_gpus)
        available = supply(ray_cluster.node_resources(), most)
        if self._gpus is None and self._device is Device.AUTO and not available.gpus:
            logger.warning(
                "the cluster has no GPU, so models run on its CPUs until one joins; to have them "
                "wait for it, say --device gpu"
            )
        # Once seen, GPUs are expected back: a node that is away for a moment must not move its
        # models to the CPUs of the others.
        self._gpus = self._gpus or self._device.gpus(available.gpus)
        # Where GPUs are wanted and there are none, replicas wait: for the first machine that has
        # some, or for those that there were, so that who had a card gets it back.
        if self._gpus and available.gpus:
            self._supply, self._away = available, False
        elif (had_some or self._supply.gpus) and not self._away:
            logger.warning(
                "the cluster has no GPU any more; the models wait for one; to have them run on its "
                "CPUs, say --device cpu"
            )
            self._away = True
        placement = place(on_ray(models), supply=self._supply)
        if placement.lacking != self._lacking:
            for lacking in placement.lacking:
                logger.warning("%s", lacking)
            if not placement.lacking:
                logger.info("every entry has the GPUs that it wants")
            self._lacking = placement.lacking
        return placement


def _usable(http: HTTPSettings | None) -> HTTPSettings | None:
    """None where it cannot be had, which stops nothing else."""
    if http is not None:
        try:
            serve_client.check_http(http)
        except ConfigError as error:
            logger.error("no HTTP API: %s", error)  # noqa: TRY400 - a setting is wrong, not us
            return None
    return http


def _on_gpus(applications: Mapping[str, Any]) -> bool:
    """Whether some of Serve's applications ask for GPUs."""
    return any(
        deployment.get("ray_actor_options", {}).get("num_gpus", 0) > 0
        for application in applications.values()
        for deployment in (application["deployed_app_config"] or {}).get("deployments", ())
    )


def _given_up(models: Sequence[AIModel]) -> set[str]:
    """Applications that Serve starts no more. Some serve all the same, on what they have."""
    return {
        app_name(key)
        for key, status in serve_client.model_status(on_ray(models)).items()
        if status.state == "DEPLOY_FAILED" and not status.running
    }


def _nodes_of_replicas(applications: Mapping[str, Any]) -> set[str]:
    """The machines on which Serve believes replicas to be."""
    return {
        node_id
        for application in applications.values()
        for deployment in application["deployments"].values()
        for replica in deployment["replicas"]
        if (node_id := replica.get("node_id"))
    }
