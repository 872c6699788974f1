"""A client of the HTTP API that knows nothing of it but its OpenAPI document.

It calls operations by their ids, encodes parameters as the document says, and checks what comes
back against the schema that the document has for the answer's status.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import jsonschema


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an operation answered, as its schema says."""

    status: int
    document: Any


class OpenAPIClient:
    """Calls operations of one server."""

    def __init__(self, http: aiohttp.ClientSession, document: Mapping[str, Any]) -> None:
        """Takes a session and the server's document; see `of`."""
        self._http = http
        self._document = document
        self._operations = {
            operation["operationId"]: (method, path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        }

    @classmethod
    async def of(cls, http: aiohttp.ClientSession) -> "OpenAPIClient":
        """Returns a client of the server that the session is for."""
        async with http.get("/openapi.json") as response:
            return cls(http, await response.json())

    @property
    def operations(self) -> list[str]:
        """The ids of those with parameters."""
        return [id_ for id_, (_, _, each) in self._operations.items() if "requestBody" in each]

    def parameters(self, operation_id: str) -> Mapping[str, Any]:
        """The schemas of an operation's parameters, by name."""
        _, _, operation = self._operations[operation_id]
        ((_, content),) = operation["requestBody"]["content"].items()
        properties: Mapping[str, Any] = self._resolved(content["schema"])["properties"]
        return properties

    async def call(self, operation_id: str, *, base: str = "", **parameters: Any) -> Answer:
        """Calls an operation.

        Args:
            operation_id: which one.
            base: a base url below the server's.
            parameters: by name; bytes for files.
        """
        method, path, operation = self._operations[operation_id]
        options = self._body(operation, parameters) if "requestBody" in operation else {}
        async with self._http.request(method, base + path, **options) as response:
            document = await response.json()
            said = operation["responses"][str(response.status)]["content"]["application/json"]
            schema = {**said["schema"], "components": self._document["components"]}
            jsonschema.validate(document, schema)
            return Answer(status=response.status, document=document)

    def _body(self, operation: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        ((media_type, _),) = operation["requestBody"]["content"].items()
        if media_type == "application/json":
            return {"json": parameters}
        form = aiohttp.FormData()
        for name, value in parameters.items():
            if isinstance(value, bytes):
                form.add_field(name, value, filename=name)
            else:
                form.add_field(name, value if isinstance(value, str) else json.dumps(value))
        return {"data": form}

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        if "$ref" not in schema:
            return schema
        name = schema["$ref"].rpartition("/")[2]
        resolved: Mapping[str, Any] = self._document["components"]["schemas"][name]
        return resolved
