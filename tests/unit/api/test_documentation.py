"""The OpenAPI document and the page that shows it."""

import re
from typing import Any

import httpx
import msgspec
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from tests.unit.api.conftest import TOKEN
from torpor.api.openapi import document
from torpor.api.operations import OPERATIONS


def fetched() -> Any:
    return msgspec.json.decode(msgspec.json.encode(document("http://127.0.0.1:7480")))


def test_the_document_is_valid() -> None:
    validate(fetched(), cls=OpenAPIV31SpecValidator)


def test_every_operation_is_told_in_full() -> None:
    found = fetched()
    told = [described for path in found["paths"].values() for described in path.values()]
    scopes = {operation.id: operation.scope for operation in OPERATIONS}
    assert len(told) == len(OPERATIONS) == len({each["operationId"] for each in told})
    for each in told:
        assert each["summary"] and each["description"]
        assert all(answer["description"] for answer in each["responses"].values())
        assert each["security"] == ([] if each["operationId"] == "showHealth" else [{"key": [scopes[each["operationId"]]]}])
        assert all(parameter.get("description", "x") for parameter in each["parameters"])
    assert all(schema["description"] for schema in found["components"]["schemas"].values())


def test_every_example_fits_its_schema() -> None:
    found = fetched()
    checked = 0
    for path in found["paths"].values():
        for described in path.values():
            for holder in (described.get("requestBody", {}), *described["responses"].values()):
                for content in holder.get("content", {}).values():
                    examples = [content["example"]] if "example" in content else []
                    examples += [each["value"] for each in content.get("examples", {}).values()]
                    for example in examples:
                        schema = {**content["schema"], "components": found["components"]}
                        OAS31Validator(schema).validate(example)
                        checked += 1
    assert checked > 40


def test_limits_and_choices_are_told() -> None:
    found = fetched()
    parameters = {p["name"]: p["schema"] for p in found["paths"]["/v1/databases"]["get"]["parameters"]}
    assert parameters["limit"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
    schemas = found["components"]["schemas"]
    assert schemas["Tier"]["enum"] == ["awake", "frozen", "paged", "stopped", "archived"]
    assert schemas["CreateBody"]["additionalProperties"] is False
    assert schemas["UpdateBody"]["properties"]["freeze_after_s"]["anyOf"][1] == {"type": "string", "enum": ["never"]}
    assert [ref["$ref"].rpartition("/")[2] for ref in schemas["DatabaseView"]["properties"]["tier_reason"]["anyOf"][:2]] == [
        "SleepReason",
        "WakeReason",
    ]


async def test_it_is_served(client: httpx.AsyncClient) -> None:
    answer = await client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["servers"] == [{"url": str(client.base_url).rstrip("/")}]


async def test_the_page_fetches_nothing_from_elsewhere(stranger: httpx.AsyncClient) -> None:
    stranger.auth = httpx.BasicAuth("whoever", TOKEN)  # as a browser does when it was asked for a password
    page = await stranger.get("/docs")
    assert page.status_code == 200
    assert "http" not in page.text.replace("</html>", "").lower()
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 4
    for link in links:
        asset = await stranger.get(link)
        assert asset.status_code == 200
        assert asset.headers["x-content-type-options"] == "nosniff"
        policy = asset.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy
        if link.endswith(".css"):
            assert "url(http" not in asset.text and "@import" not in asset.text
    assert (await stranger.head("/docs")).content == b""
