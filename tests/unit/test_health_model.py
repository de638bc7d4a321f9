"""Health checks in the documents: what is accepted, and in which words the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lb.errors import UserError
from lb.model import manifest
from lb.model.checkwords import describe_check, parse_check
from lb.model.health import Health, HttpCheck, Overrides, Via, effective
from lb.model.objects import Backend, Service

SERVICE = {"name": "web", "vip": "198.51.100.100", "port": 80}
BACKEND = {"service": "web", "name": "b1", "address": "203.0.113.11"}


def health(**fields: Any) -> Health:
    found = Service.model_validate({**SERVICE, "health": fields}).health
    assert found
    return found


def refusal(document: type[Service] | type[Backend], fields: Any) -> str:
    base = SERVICE if document is Service else BACKEND
    with pytest.raises(ValidationError) as caught:
        document.model_validate({**base, "health": fields})
    return manifest.explain(caught.value.errors()[0], document)


def test_defaults_are_a_tcp_check_that_admits_nobody_unchecked() -> None:
    found = health()
    assert (found.check.kind, found.initial, found.panic, found.flaps) == ("tcp", "down", 0, 0)
    assert found.fast == found.interval / 2


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(2, 2), (0.5, 0.5), ("3", 3), ("500ms", 0.5), ("1.5s", 1.5), ("5m", 300), ("1h", 3600)],
)
def test_durations(written: Any, seconds: float) -> None:
    assert health(interval=written).interval == seconds


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"check": {"kind": "tcp", "method": "GET"}}, "health.check.method: is not a setting of a tcp"),
        ({"check": {"kind": "icmp"}}, "health.check: kind must be one of tcp, http"),
        ({"check": {}}, "health.check: has to say its kind: tcp, http"),
        ({"check": {"kind": "http", "method": "PUT"}}, "must be GET, HEAD, POST or OPTIONS, not 'PUT'"),
        ({"check": {"kind": "http", "method": "HEAD", "body": "x"}}, "HEAD has no body"),
        ({"check": {"kind": "http", "path": "x"}}, "'x' does not begin with /"),
        ({"check": {"kind": "http", "path": "/a b"}}, "don't belong there; in a path write %20"),
        ({"check": {"kind": "http", "host": "bücher.example"}}, "don't belong there"),
        ({"check": {"kind": "http", "path": "/\r\nEvil:"}}, "control characters"),
        ({"check": {"kind": "http", "headers": {"X": "a\r\nEvil: b"}}}, "control characters"),
        ({"check": {"kind": "http", "headers": {"a b": "c"}}}, "not the name of a header"),
        ({"check": {"kind": "http", "headers": {"Host": "c"}}}, "set by lb; see `host`"),
        ({"check": {"kind": "http", "status": [99]}}, "'99' is not a status"),
        ({"check": {"kind": "http", "status": ["299-200"]}}, "'299-200' is not a status"),
        ({"check": {"kind": "http", "status": []}}, "must not be empty"),
        ({"check": {"kind": "https", "verify": 1}}, "must be true or false, not 1"),
        ({"check": {"kind": "udp"}}, "health.check.send: is missing"),
        ({"check": {"kind": "dns", "name": "a..b"}}, "is not a name in DNS"),
        ({"check": {"kind": "dns", "name": "a.b", "type": "ANY"}}, "health.check.type: must be A, AAAA"),
        ({"check": {"kind": "exec", "argv": []}}, "must not be empty"),
        ({"check": {"kind": "exec", "argv": ["true"]}}, "'true' is not the whole path"),
        ({"check": {"kind": "tcp", "port": 0}}, "health.check.port: must be at least 1, not 0"),
        ({"via": "vips"}, "health.via: must be backend or vip, not 'vips'"),
        ({"interval": 0}, "health.interval: must be at least 0.1, not 0"),
        ({"interval": float("nan")}, "health.interval: nan is not a duration"),
        ({"interval": "soon"}, "'soon' is not a duration"),
        ({"interval": True}, "True is not a duration"),
        ({"intervall": 1}, "did you mean 'interval'?"),
        ({"jitter": 0.6}, "must be at most 0.5"),
        ({"rise": True}, "health.rise: must be a whole number, not True"),
        ({"fall": 0}, "health.fall: must be at least 1"),
        ({"panic": 101}, "must be at most 100"),
        ({"initial": "on"}, "must be down or up, not 'on'"),
        (7, "health: must be a mapping, not 7"),
    ],
)
def test_what_is_refused_and_how(fields: Any, words: str) -> None:
    assert words in refusal(Service, fields)


def test_overrides_are_as_strict() -> None:
    assert "health.rize: is not a setting" in refusal(Backend, {"rize": 2})
    assert "did you mean 'rise'?" in refusal(Backend, {"rize": 2})
    assert "health.check.method" in refusal(Backend, {"check": {"kind": "tcp", "method": "GET"}})


def test_a_range_of_ports_needs_to_say_which_one() -> None:
    several = {**SERVICE, "port": 8000, "end_port": 8100}
    with pytest.raises(ValidationError, match="which one is checked"):
        Service.model_validate({**several, "health": {}})
    Service.model_validate({**several, "health": {"check": {"kind": "tcp", "port": 8000}}})
    Service.model_validate({**several, "health": {"check": {"kind": "exec", "argv": ["/x"]}}})


def test_a_backend_differs_where_it_says_so() -> None:
    base = health(check={"kind": "http", "path": "/healthz"}, interval=5, rise=4)
    own = Overrides(port=8080, interval=1)
    found = effective(base, own, 80)
    assert found
    assert isinstance(found.check, HttpCheck)
    assert (found.check.path, found.check.port) == ("/healthz", 8080)
    assert (found.interval, found.rise) == (1, 4)
    assert effective(base, Overrides(enabled=False), 80) is None
    assert effective(None, own, 80) is None


def test_which_port_is_asked() -> None:
    """The backend's own word first, then the service's check, then where the traffic goes."""
    plain, fixed = health(), health(check={"kind": "tcp", "port": 9})
    for base, own, port in (
        (plain, None, 80),
        (fixed, None, 9),
        (fixed, Overrides(port=7), 7),
        (fixed, Overrides.model_validate({"check": {"kind": "tcp"}}), 9),
        (fixed, Overrides.model_validate({"check": {"kind": "tcp", "port": 8}}), 8),
    ):
        found = effective(base, own, 80)
        assert found
        assert found.check.port == port


@pytest.mark.parametrize(
    "text",
    ["tcp", "tcp:80", "http:/healthz", "http:8080/", "https:8443/x?y=1", "grpc", "grpc:50051",
     "grpc:50051/a.B", "exec:/etc/lb/checks/x a"],
)  # fmt: skip
def test_short_forms_go_there_and_back(text: str) -> None:
    assert describe_check(parse_check(text)) == text


@pytest.mark.parametrize("text", ["", "udp:53", "icmp", "tcp:x", "tcp:80/x", "http:x", "dns:", "exec:x"])
def test_short_forms_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"not one of|check\."):
        parse_check(text)


MANIFEST = """\
services:
- name: web
  vip: 198.51.100.100
  port: 80
  health:
    check: {kind: http, path: /healthz, status: [200, 204]}
    interval: 1s
    slow_start: 1m
  backends:
  - {name: b1, address: 203.0.113.11, health: {port: 8080}}
"""


def test_a_manifest_goes_there_and_back() -> None:
    import yaml

    loaded = manifest.load(MANIFEST, "web.yaml")
    [entry] = loaded.services
    assert entry.service.health
    assert (entry.service.health.interval, entry.service.health.slow_start) == (1, 60)
    out = manifest.export([(entry.service, entry.backends)])
    again = manifest.load(yaml.safe_dump(out), "again").services[0]
    assert (again.service, again.backends) == (entry.service, entry.backends)


def test_an_error_in_a_manifest_has_its_place() -> None:
    with pytest.raises(UserError) as caught:
        manifest.load(MANIFEST.replace("path:", "paht:"), "web.yaml")
    assert caught.value.message.startswith("web.yaml:6:")
    assert "health.check.paht: is not a setting of an http check" in caught.value.message


@pytest.mark.parametrize(
    ("service", "check", "words"),
    [
        ({"end_port": 90}, {"kind": "tcp", "port": 80}, "one port only"),
        ({}, {"kind": "tcp", "port": 81}, "port 80 can be asked, not 81"),
        ({}, {"kind": "exec", "argv": ["/x"]}, "connections of its own"),
    ],
)
def test_what_can_not_be_checked_via_the_vip(
    service: dict[str, Any], check: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        Service.model_validate({**SERVICE, **service, "health": {"check": check, "via": "vip"}})
    assert health(check={"kind": "tcp", "port": 80}, via="vip").via is Via.VIP
