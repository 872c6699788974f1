"""Where an orchestrator finds a live runner: addresses that nobody can guess.

A runner cannot check the session token that comes with each request, since it is derived from a
seed that never leaves the orchestrator (go-livepeer, ai/runner/live_runner.go). But orchestrators
keep the urls of single-shot runners to themselves. So each begins with a path that is made from
the secret that both sides have, and is the same after a restart.

Each model has a path of its own, which opens that model and nothing else. Orchestrators join a
client's path to ours, `..` included if it is written `..%2f` (proxyLiveRunner in
server/ai_http.go): with one path for all, who may ask one model could ask every other, past its
capacity and its price.
"""

import hashlib
import hmac
import re

from pydantic import SecretStr

from cluster.ai_models import ModelKey

_OPERATION = re.compile(
    r"/(?P<path>[^/]+)/(?P<pipeline>[^/]+)/(?P<model_id>.+)"
    r"/(?:(?P=pipeline)|health|version|hardware/info|hardware/stats)/?"
)


def secret_path(secret: SecretStr, key: ModelKey) -> str:
    """Returns the first part of the path of a model's url."""
    name = f"livepeer-ray live runner {key.pipeline}/{key.model_id}"
    code = hmac.new(secret.get_secret_value().encode(), name.encode(), hashlib.sha256)
    return code.hexdigest()[:32]


def runner_url(url: str, secret: SecretStr, key: ModelKey) -> str:
    """Returns the base url of one model.

    Args:
        url: how the orchestrator reaches the bridge.
        secret: the -orchSecret.
        key: the model.
    """
    return f"{url.rstrip('/')}/{secret_path(secret, key)}/{key.pipeline}/{key.model_id}"


def opens(path: str, secret: SecretStr) -> str:
    """Returns the secret part of a path if it fits the model that the path names; else nothing.

    Args:
        path: of a request, decoded.
        secret: the -orchSecret.
    """
    if not (asked := _OPERATION.fullmatch(path)):
        return ""
    wanted = secret_path(secret, ModelKey(asked["pipeline"], asked["model_id"]))
    fits = hmac.compare_digest(asked["path"].encode(), wanted.encode())
    return wanted if fits else ""
