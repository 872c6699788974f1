"""Where an orchestrator finds a live runner: addresses that nobody can guess.

A runner cannot check the session token that comes with each request, since it is derived from a
seed that never leaves the orchestrator (go-livepeer, ai/runner/live_runner.go). But orchestrators
keep the urls of single-shot runners to themselves. So each begins with a path that is made from
the secret that both sides have, and is the same after a restart.
"""

import hashlib
import hmac

from pydantic import SecretStr

from cluster.ai_models import ModelKey


def secret_path(secret: SecretStr) -> str:
    """Returns the first part of the path of every runner's url."""
    key = secret.get_secret_value().encode()
    return hmac.new(key, b"livepeer-ray live runner", hashlib.sha256).hexdigest()[:32]


def runner_url(url: str, secret: SecretStr, key: ModelKey) -> str:
    """Returns the base url of one model.

    Args:
        url: how the orchestrator reaches the bridge.
        secret: the -orchSecret.
        key: the model.
    """
    return f"{url.rstrip('/')}/{secret_path(secret)}/{key.pipeline}/{key.model_id}"
