"""Whatever the OpenAPI document allows, and much that it does not: never an error of ours.

schemathesis makes requests out of the document, hypothesis their values.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from deployments.ingress.app import create_app
from deployments.ingress.config import IngressConfig, Token
from deployments.ingress.served import Seen
from deployments.ingress.service import Service
from tests.deployments.ingress.standin import ONE_EACH, StandIn

EXAMPLES = 12
"""Of each operation, half of them wrong: what breaks, breaks on the first few."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
"""Not that valid requests are served: no schema says which models there are."""

HEADERS = {"Authorization": "Bearer a-token-for-the-fuzzer"}

SERVICE = Service(StandIn())
SERVICE.configure(
    IngressConfig(
        models=tuple(ONE_EACH.values()), tokens=(Token.of(HEADERS["Authorization"].split()[1]),)
    )
)
SERVICE.served.see({model.app: Seen(running=1) for model in ONE_EACH.values()})

DOCUMENT = schemathesis.openapi.from_asgi("/openapi.json", create_app(SERVICE))
OPERATIONS = [found.ok() for found in DOCUMENT.get_all_operations() if isinstance(found, Ok)]


@pytest.fixture(scope="module")
def statuses() -> Iterator[Counter[int]]:
    """How often each was answered: requests have to get as far as the models."""
    counted: Counter[int] = Counter()
    yield counted
    assert all(counted[status] for status in (200, 400, 422)), counted


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_no_request_is_a_fault_of_ours(
    operation: schemathesis.APIOperation[Any, Any, Any, Any], statuses: Counter[int]
) -> None:
    modes = (
        list(schemathesis.GenerationMode)
        if operation.body
        else [schemathesis.GenerationMode.POSITIVE]
    )

    @given(case=st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]))
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case[Any]) -> None:
        response = case.call(headers=HEADERS)
        case.validate_response(response, checks=CHECKS)
        statuses[response.status_code] += 1

    ask()
