"""Rendered events are exact, the same each time, and read by the CloudEvents SDK."""

import json
from dataclasses import replace
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from hypothesis import given
from hypothesis import strategies as st

from service.core.event import Event
from service.core.subscription import Format
from service.webhook.formats import render

DATA = b'{"amount": 1.10, "big": 12345678901234567890.0,\n "name": "J\xc3\xb6rg"}'
EVENT = Event(
    id="order-1",
    type="order.created",
    source="/shop",
    time="2026-01-02T03:04:05.678Z",
    time_unix=1767323045.678,
    data=DATA,
    subject="orders/1",
    tenant="acme",
    extensions={"region": "eu", "partitionkey": "7"},
)
AWKWARD = 'a "b" 100% \u00fc\u20ac\U0001f600'


def read_by_sdk(event: Event, form: Format) -> Any:
    content = render(event, form)
    headers = {"content-type": content.content_type, **dict(content.headers)}
    return from_http_event(HTTPMessage(headers=headers, body=content.body))


def test_standard_is_type_time_and_the_exact_data() -> None:
    content = render(EVENT, Format.STANDARD)
    assert content.body == (
        b'{"type":"order.created","timestamp":"2026-01-02T03:04:05.678Z","data":' + DATA + b"}"
    )
    assert content.content_type == "application/json"
    assert content.headers == ()


def test_raw_is_the_exact_data_with_its_own_content_type() -> None:
    event = replace(EVENT, data_content_type="application/vnd.shop+json; charset=utf-8")
    content = render(event, Format.RAW)
    assert content.body == DATA
    assert content.content_type == "application/vnd.shop+json; charset=utf-8"


def test_binary_carries_the_exact_data_and_attributes_as_headers() -> None:
    content = render(EVENT, Format.CLOUDEVENTS_BINARY)
    assert content.body == DATA
    assert content.content_type == "application/json"
    assert content.headers == (
        ("ce-specversion", "1.0"),
        ("ce-id", "order-1"),
        ("ce-source", "/shop"),
        ("ce-type", "order.created"),
        ("ce-time", "2026-01-02T03:04:05.678Z"),
        ("ce-subject", "orders/1"),
        ("ce-tenant", "acme"),
        ("ce-partitionkey", "7"),
        ("ce-region", "eu"),
    )


def test_structured_carries_the_exact_data_inline() -> None:
    content = render(EVENT, Format.CLOUDEVENTS_STRUCTURED)
    assert content.content_type == "application/cloudevents+json"
    assert content.body.endswith(b',"data":' + DATA + b"}")
    assert json.loads(content.body)["datacontenttype"] == "application/json"


@pytest.mark.parametrize("form", [Format.CLOUDEVENTS_BINARY, Format.CLOUDEVENTS_STRUCTURED])
def test_the_sdk_reads_every_attribute(form: Format) -> None:
    read = read_by_sdk(EVENT, form)
    assert read.get_id() == "order-1"
    assert read.get_source() == "/shop"
    assert read.get_type() == "order.created"
    assert read.get_specversion() == "1.0"
    assert read.get_subject() == "orders/1"
    assert read.get_time().isoformat() == "2026-01-02T03:04:05.678000+00:00"
    assert read.get_extension("tenant") == "acme"
    assert read.get_extension("region") == "eu"
    assert read.get_data() == json.loads(DATA)


@pytest.mark.parametrize("form", [Format.CLOUDEVENTS_BINARY, Format.CLOUDEVENTS_STRUCTURED])
def test_awkward_characters_come_through(form: Format) -> None:
    read = read_by_sdk(replace(EVENT, subject=AWKWARD, id=AWKWARD), form)
    assert read.get_subject() == AWKWARD
    assert read.get_id() == AWKWARD


def test_header_values_are_percent_encoded_as_the_binding_says() -> None:
    content = render(replace(EVENT, subject='Euro \u20ac "100%" ~!\x7f'), Format.CLOUDEVENTS_BINARY)
    assert dict(content.headers)["ce-subject"] == "Euro%20%E2%82%AC%20%22100%25%22%20~!%7F"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_is_safe_in_a_header(text: str) -> None:
    content = render(replace(EVENT, subject=text), Format.CLOUDEVENTS_BINARY)
    value = dict(content.headers)["ce-subject"]
    assert all("!" <= char <= "~" for char in value)


@pytest.mark.parametrize("form", list(Format))
def test_rendering_twice_gives_the_same_bytes(form: Format) -> None:
    shuffled = replace(EVENT, extensions=dict(reversed(list(EVENT.extensions.items()))))
    assert render(EVENT, form) == render(shuffled, form)


@pytest.mark.parametrize("form", [Format.CLOUDEVENTS_BINARY, Format.CLOUDEVENTS_STRUCTURED])
@pytest.mark.parametrize(
    "name", ["Region", "my-ext", "my_ext", "", "x\r\ny", "\u00e9", "data", "id", "specversion"]
)
def test_names_that_are_no_extension_names_are_left_out(form: Format, name: str) -> None:
    event = replace(EVENT, extensions={name: "injected"})
    content = render(event, form)
    assert b"injected" not in content.body
    assert "injected" not in dict(content.headers).values()


def test_the_tenant_of_the_event_is_not_overridden_by_an_extension() -> None:
    content = render(replace(EVENT, extensions={"tenant": "other"}), Format.CLOUDEVENTS_BINARY)
    assert [value for name, value in content.headers if name == "ce-tenant"] == ["acme"]


def test_absent_and_empty_attributes_are_left_out() -> None:
    event = replace(EVENT, subject=None, tenant=None, extensions={"region": ""})
    names = [name for name, _ in render(event, Format.CLOUDEVENTS_BINARY).headers]
    assert names == ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time"]


@pytest.mark.parametrize(
    "given_type", ["", "json", "text/\r\nx: y", "a/b\r\nx: y", "text/pl\u00e4in"]
)
def test_a_content_type_that_cannot_be_a_header_becomes_json(given_type: str) -> None:
    event = replace(EVENT, data_content_type=given_type)
    assert render(event, Format.RAW).content_type == "application/json"
    assert render(event, Format.CLOUDEVENTS_BINARY).content_type == "application/json"
