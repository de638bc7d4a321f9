"""lbctl import ipvs: rules as ipvsadm 1.31 prints them (`ipvsadm -S -n`), as a manifest."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lb.core.ipvs import read
from lb.errors import UserError

WEB = """\
-A -t 10.0.0.1:80 -s wrr
-a -t 10.0.0.1:80 -r 10.0.1.1:80 -g -w 50
-a -t 10.0.0.1:80 -r 10.0.1.2:80 -g -w 30
-a -t 10.0.0.1:80 -r 10.0.1.3:80 -g -w 0
-A -u 10.0.0.2:53 -s wlc -p 300
-a -u 10.0.0.2:53 -r 10.0.1.1:5353 -m -w 1
-A -t [2001:db8::1]:443 -s wrr
-a -t [2001:db8::1]:443 -r [2001:db8:1::1]:443 -i -w 3 --tun-type ipip
"""


def only(text: str) -> dict:
    (service,) = read(text).manifest["services"]
    return service


def lost(text: str) -> list[str]:
    return [remark.text for remark in read(text).remarks if remark.lost]


def test_services_modes_and_weights(lbctl, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text(WEB)
    said = lbctl.ok("import", "ipvs", str(rules))
    web, dns, six = yaml.safe_load(said.out)["services"]
    assert (web["mode"], dns["mode"], six["mode"]) == ("dsr", "nat", "ipip")
    assert [backend["weight"] for backend in web["backends"]] == [50, 30, 0]
    assert (dns["affinity"], dns["protocol"]) == ("client", "udp")
    assert dns["backends"][0]["port"] == 5353
    assert "affinity" not in web
    assert said.err.count("note: line 5: ") == 2  # its scheduler, its persistence
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(said.out)
    lbctl.ok("apply", "-f", str(manifest))
    listed = {each["name"]: each for each in lbctl.json("service", "list")}
    assert listed["tcp-2001-db8--1-443"]["mode"] == "ipip"
    assert len(lbctl.json("backend", "list")) == 5
    assert lbctl.json("import", "ipvs", str(rules)) == yaml.safe_load(said.out)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("-A -f 1 -s rr", "firewall mark"),
        ("-A --sctp-service 10.0.0.1:80 -s rr", "SCTP"),
        ("-A -t 10.0.0.1:80 -s fo", "backup"),
        ("-A -t web.example:http -s rr", "ipvsadm -S -n"),
        ("-D -t 10.0.0.1:80", "-D"),
        ("-a -t 10.0.0.1:80 -r 10.0.1.1:80 -g -w 1", "no line before it"),
        ("-A -t 10.0.0.1:80 -s 'rr", "quotation"),
    ],
)
def test_what_has_no_place_is_listed(lbctl, tmp_path: Path, rule: str, why: str) -> None:
    rules = tmp_path / "rules"
    rules.write_text(f"{rule}\n-A -t 10.0.0.9:80 -s wrr\n")
    result = lbctl("import", "ipvs", str(rules))
    assert result.code == 1
    assert [each["name"] for each in yaml.safe_load(result.out)["services"]] == ["tcp-10-0-0-9-80"]
    assert "note: line 1: left out" in result.err
    assert why in result.err


def test_servers_of_a_service_that_is_left_out_go_with_it() -> None:
    text = "-A -f 1 -s rr\n-a -f 1 -r 10.0.1.1:0 -g -w 1\n-a -f 1 -r 10.0.1.2:0 -g -w 1\n"
    assert read(text).manifest == {"services": []}
    (remark,) = lost(text)
    assert "its 2 servers" in remark


def test_a_service_has_one_mode() -> None:
    text = "-A -t 10.0.0.1:80 -s wrr\n" + "".join(
        f"-a -t 10.0.0.1:80 -r 10.0.1.{n}:80 {way} -w 1\n" for n, way in ((1, "-g"), (2, "-m"))
    )
    (remark,) = lost(text)
    assert "dsr, nat" in remark


def test_schedulers_that_ignore_weights_and_that_hash() -> None:
    server = "-a -t 10.0.0.1:80 -r 10.0.1.1:80 -g -w 7\n"
    assert only(f"-A -t 10.0.0.1:80 -s rr\n{server}")["backends"][0]["weight"] == 1
    assert only(f"-A -t 10.0.0.1:80 -s wlc\n{server}")["backends"][0]["weight"] == 7
    assert only("-A -t 10.0.0.1:80 -s sh")["affinity"] == "client"
    assert only("-A -t 10.0.0.1:80 -s mh")["affinity"] == "client"
    assert "affinity" not in only("-A -t 10.0.0.1:80 -s sh -b sh-port")
    assert not read("-A -t 10.0.0.1:80 -s sh").remarks


def test_all_ports_and_two_ports_of_one_server() -> None:
    every = only("-A -t 10.0.0.1:0 -s rr -p 360 -M 255.255.255.0")
    assert (every["port"], every["end_port"], every["name"]) == (1, 65535, "tcp-10-0-0-1-any")
    twice = "-A -t 10.0.0.1:80 -s rr\n" + "".join(
        f"-a -t 10.0.0.1:80 -r 10.0.1.1:{port} {{}} -w 1\n" for port in (80, 8080)
    )
    assert [each["name"] for each in only(twice.format("-m", "-m"))["backends"]] == [
        "10-0-1-1",
        "10-0-1-1-8080",
    ]
    assert len(only(twice.format("-g", "-g"))["backends"]) == 1
    assert len(lost(twice.format("-g", "-g"))) == 1


def test_gue_and_its_port() -> None:
    rule = "-A -t 10.0.0.1:80 -s wrr\n-a -t 10.0.0.1:80 -r 10.0.1.1:80 -i -w 1 --tun-type {}\n"
    gue = only(rule.format("gue --tun-port 6080 --tun-nocsum"))
    assert (gue["mode"], gue["backends"][0].get("port")) == ("gue", None)
    assert only(rule.format("gue --tun-port 7000"))["backends"][0]["port"] == 7000
    assert "type gre" in lost(rule.format("gre"))[0]


def test_limits_one_packet_and_engines_are_told() -> None:
    text = (
        "-A -u 10.0.0.1:5060 -s rr -p 60 --pe sip -o\n"
        "-a -u 10.0.0.1:5060 -r 10.0.1.1:5060 -m -w 1 -x 100 -y 50\n"
    )
    said = " ".join(remark.text for remark in read(text).remarks)
    assert not lost(text)
    for each in ("sip", "one-packet", "60 s", "-x 100 -y 50"):
        assert each in said


def test_nothing_to_import(lbctl, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rules"):
        read("\n# nothing\n")
    assert lbctl("import", "ipvs", str(tmp_path / "none")).code == 3
