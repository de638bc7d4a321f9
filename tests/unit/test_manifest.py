"""lb/model/manifest.py."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lb.errors import UserError
from lb.model import manifest
from lb.model.objects import Admin, Affinity, Backend, Mode, NoBackend, Service, Tracking

GOOD = """\
services:
  - name: web
    vip: 10.0.0.1
    port: 80
    backends:
      - name: b1
        address: 10.0.1.1
      - name: b2
        address: "2001:db8::2"
        weight: 0
"""


def refusal(text):
    with pytest.raises(UserError) as raised:
        manifest.load(text, "f.yaml")
    assert "\n" not in raised.value.message
    assert raised.value.hint
    return raised.value.message


def test_reads_what_is_there():
    [entry] = manifest.load(GOOD, "f.yaml").services
    assert entry.service == Service(name="web", vip="10.0.0.1", port=80)
    assert entry.service.model_fields_set == {"name", "vip", "port", "end_port"}
    b1, b2 = entry.backends
    assert b1 == Backend(service="web", name="b1", address="10.0.1.1")
    assert (str(b2.address), b2.weight) == ("2001:db8::2", 0)
    assert manifest.load("services: []", "f.yaml").services == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vip:", "vpi:", "f.yaml:3:5: services[0]: unknown key 'vpi'; did you mean 'vip'?"),
        ("backends:", "backend:", "f.yaml:5:5: services[0]: unknown key 'backend'; did you mean"),
        ("services:", "service:", "f.yaml:1:1: unknown key 'service'; did you mean 'services'?"),
        ("weight", "wieght", "f.yaml:10:9: services[0].backends[1]: unknown key 'wieght'; did you mean"),
        ("weight", "service", "f.yaml:10:9: services[0].backends[1]: unknown key 'service'"),
        (
            "weight: 0",
            "weight: 70000",
            "f.yaml:10:9: services[0].backends[1]: weight: must be 0 to 65535, not 70000",
        ),
        ("weight: 0", "weight: yes", "f.yaml:10:9: services[0].backends[1]: weight: True is not"),
        ("weight: 0", "weight: ~", "weight: must be 0 to 65535, not None"),
        ("weight: 0", "admin: off", "admin: False is not a valid value"),
        ("weight: 0", "admin: gone", "admin: must be up, drain or down, not 'gone'"),
        ("vip: 10.0.0.1", "vip: 10", "f.yaml:3:5: services[0]: vip: 10 is not a valid value"),
        ("vip: 10.0.0.1", "vip: 10.0.0.256", "vip: '10.0.0.256' is not an IPv4 or IPv6 address"),
        ("vip: 10.0.0.1", "vip: 127.0.0.1", "vip: 127.0.0.1 is not a unicast address"),
        ("    port: 80\n", "", "f.yaml:2:5: services[0]: port: is missing"),
        ("name: web", "name: 5", "f.yaml:2:5: services[0]: name: must be text, not 5; quotes"),
        ("name: web", "name: W", "name: must be 1 to 63 of a-z, 0-9 and '-'"),
        ("port: 80\n", "port: 80\n    port: 81\n", "f.yaml:5:5: key 'port' comes twice"),
        ("name: b2", "name: b1", "f.yaml:8:9: services[0].backends[1]: backend 'b1' comes twice"),
        ("port: 80", "port: 80\n    split: {stable: 90}", "split sums to 90 %, not to 100 %"),
        ("port: 80", "port: 80\n    split: {stable: x}", "split.stable: must be 0 to 100 per pool"),
        ("port: 80", "port: 80\n    split: {Big: 100}", "split.Big: must be 1 to 63 of a-z"),
        ("- name: b1", "- - b1", "not YAML"),
        ("vip: 10.0.0.1", "vip: [10.0.0.1]", "is not an IPv4 or IPv6 address"),
        ("vip: 10.0.0.1", "vip: {a: 1}", "is not an IPv4 or IPv6 address"),
        ("name: web", "5: web", "f.yaml:2:5: key 5 is not text"),
        ("name: web", "name: web: x", "f.yaml:2:14: not YAML"),
        ("name: web", "name: !!python/object:os.system x", "not YAML"),
        ("name: web", "name: 2026-02-30", "not YAML"),
        ("name: web", "\tname: web", "not YAML"),
        ("name: web", 'name: "we\x07b"', "not YAML"),
        ("name: web", "name: *web", "f.yaml:2:11: not YAML"),
    ],
)
def test_names_the_line_and_what_is_wrong(old, new, message):
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    found = refusal(text)
    assert found.startswith("f.yaml:")
    assert message in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml: the file is empty"),
        ("# nothing\n", "f.yaml: the file is empty"),
        ("[]", "f.yaml:1:1: a manifest is a mapping"),
        ("web", "f.yaml:1:1: a manifest is a mapping"),
        ("{}", "f.yaml:1:1: services must be a list"),
        ("services:\n", "f.yaml:1:1: services must be a list ([] for none), not None"),
        ("services: {}", "services must be a list"),
        ("services: [web]", "f.yaml:1:12: services[0]: must be a mapping, not 'web'"),
        ("services: []\n---\nservices: []\n", "f.yaml:2:1: not YAML"),
        (GOOD + GOOD.removeprefix("services:\n"), "service 'web' comes twice"),
        (GOOD.split("      - name: b1")[0], "backends must be a list ([] for none), not None"),
        ("services: &s [*s]", "f.yaml:1:11: aliases make this endless"),
        ("services: " + "[" * 1_000_000, "f.yaml:1:60: nested too deeply"),
    ],
)
def test_refuses_what_is_no_manifest(text, message):
    assert message in refusal(text)


def test_a_short_file_cannot_mean_an_endless_one():
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for above, here in zip("abcdefg", "bcdefgh", strict=True):
        lines.append(f"{here}: &{here} [" + ", ".join([f"*{above}"] * 10) + "]")
    assert "too large" in refusal("\n".join(lines))


def test_aliases_are_fine():
    text = GOOD.replace("address: 10.0.1.1", "address: &here 10.0.1.1\n        pool: stable")
    text += "  - {name: api, vip: 10.0.0.2, port: 80, backends: [{name: a1, address: *here}]}\n"
    assert str(manifest.load(text, "f").services[1].backends[0].address) == "10.0.1.1"


def test_json_is_yaml():
    text = json.dumps(yaml.safe_load(GOOD))
    assert manifest.load(text, "f") == manifest.load(GOOD, "f")


def test_merged_keeps_what_the_file_does_not_say():
    current = Backend(
        service="web", name="b1", address="10.0.1.9", weight=5, admin=Admin.DRAIN, port=8080
    )
    [entry] = manifest.load(GOOD, "f").services
    result = manifest.merged(current, entry.backends[0])
    assert (str(result.address), result.weight, result.admin) == ("10.0.1.1", 5, Admin.DRAIN)
    assert result.port is None  # the port goes with the address
    assert manifest.merged(None, entry.backends[0]) == entry.backends[0]


names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)


@st.composite
def entries(draw):
    name = draw(names)
    service = Service(
        name=name,
        vip=draw(st.sampled_from(["10.0.0.1", "2001:db8::1"])),
        port=draw(st.integers(1, 65535)),
        mode=draw(st.sampled_from(Mode)),
        affinity=draw(st.sampled_from(Affinity)),
        tracking=draw(st.sampled_from(Tracking)),
        no_backend=draw(st.sampled_from(NoBackend)),
        split=draw(st.sampled_from([{"stable": 100.0}, {"stable": 99.5, "no": 0.5}])),
    )
    backends = [
        Backend(
            service=name,
            name=each,
            address=draw(st.sampled_from(["10.1.0.1", "2001:db8::2"])),
            port=draw(st.none() | st.integers(1, 65535)),
            weight=draw(st.integers(0, 65535)),
            admin=draw(st.sampled_from(Admin)),
            pool=draw(names),
        )
        for each in draw(st.lists(names, unique=True, max_size=4))
    ]
    return service, backends


@given(st.lists(entries(), max_size=4, unique_by=lambda each: each[0].name))
def test_export_and_load_are_inverse(wanted):
    """Also of names that YAML would read as something else: no, 1e5, 0x1f, 12."""
    for dump in (yaml.safe_dump, json.dumps):
        read = manifest.load(dump(manifest.export(wanted)), "f")
        assert [(e.service, list(e.backends)) for e in read.services] == wanted


def test_schema_knows_every_field_and_no_other():
    schema = manifest.schema()
    definitions = schema["$defs"]
    assert set(definitions["Service"]["properties"]) == {*Service.model_fields, "backends"}
    assert set(definitions["Backend"]["properties"]) == {*Backend.model_fields} - {"service"}
    assert "service" not in definitions["Backend"]["required"]
    assert definitions["Service"]["additionalProperties"] is False
    text = json.dumps(schema)
    for name in ("Mode", "Admin"):
        assert f"#/$defs/{name}" in text
        assert name in definitions
