"""Who may ask for what."""

from typing import Any

import pytest
from starlette.requests import Request

from deployments.ingress.config import Token
from deployments.ingress.errors import Unauthorized
from deployments.ingress.guard import Guard
from tests.deployments.ingress.conftest import API
from tests.deployments.ingress.requests import body
from tests.deployments.ingress.standin import served

A, B = served("text-to-image", "org/a"), served("text-to-image", "org/b")
ALL, ONLY_A = "the-token-for-all-models", "the-token-for-model-a"
TOKENS = (Token.of(ALL), Token.of(ONLY_A, models=("text-to-image/org/a",)))


@pytest.mark.parametrize(
    ("header", "model", "status"),
    [
        (f"Bearer {ALL}", "org/a", 200),
        (f"Bearer {ALL}", "org/b", 200),
        (f"bearer {ONLY_A}", "org/a", 200),
        (f"Bearer {ONLY_A}", "org/b", 401),
        (f"Bearer {ALL}x", "org/a", 401),
        (f"Basic {ALL}", "org/a", 401),
        ("Bearer", "org/a", 401),
        ("Bearer \xff", "org/a", 401),
        (None, "org/a", 401),
    ],
)
@pytest.mark.parametrize("at_the_root", [True, False])
async def test_a_model_is_for_who_has_its_token(
    api: API, header: str | None, model: str, status: int, at_the_root: bool
) -> None:
    api.serve(A, B, tokens=TOKENS)
    path = "/text-to-image" if at_the_root else f"/text-to-image/{model}/text-to-image"
    headers = {"Authorization": header} if header else {}
    request = body("text-to-image", model_id=model)
    async with api.http.post(path, headers=headers, **request) as response:
        assert response.status == status
        if status == 401:
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert await response.json() == {"detail": {"msg": "Invalid bearer token."}}


async def test_without_a_token_no_body_is_read(api: API) -> None:
    api.serve(A, tokens=TOKENS)
    # It would be a 422 for who may ask.
    assert (await api.post("/text-to-image", json={}))[0] == 401


async def test_health_is_for_everybody_as_in_the_reference(api: API) -> None:
    api.serve(A, tokens=TOKENS)
    for path in ("/health", "/version", "/hardware/info", "/text-to-image/org/a/health"):
        assert (await api.get(path))[0] == 200


@pytest.mark.parametrize(
    ("client", "admitted"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        (None, True),
        ("10.0.0.7", False),
        ("2001:db8::1", False),
        ("testclient", False),
    ],
)
def test_without_any_token_only_this_machine_may_ask(client: str | None, admitted: bool) -> None:
    scope: dict[str, Any] = {"type": "http", "headers": []}
    scope["client"] = client and (client, 1234)
    if admitted:
        Guard().admit(Request(scope))
    else:
        with pytest.raises(Unauthorized, match="only this machine"):
            Guard().admit(Request(scope))


def test_behind_a_proxy_everybody_looks_as_if_from_here() -> None:
    request = Request({"type": "http", "headers": [], "client": ("127.0.0.1", 1234)})
    with pytest.raises(Unauthorized, match="HAProxy"):
        Guard(sees_clients=False).admit(request)


def test_a_token_is_not_kept() -> None:
    assert ALL not in TOKENS[0].model_dump_json()
