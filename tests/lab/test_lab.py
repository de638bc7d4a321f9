"""The lab itself, without lbd: it comes up, its network is as planned, and nothing of it stays."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from lb.errors import ConflictError, UserError
from lb.lab.lab import UDP_PORT, Lab, tear_down
from lb.lab.ledger import ROOT
from lb.lab.shell import LabError, environment, run, wait_until
from lb.lab.topology import CLIENT4, VIP4, VIP6, Address, Topology

OTHER = "lbu-"

ASK_UDP = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
client = socket.socket(family, socket.SOCK_DGRAM)
client.settimeout(5)
client.connect((host, port))  # so that an answer from another address is not taken
client.send(b"who?")
print(client.recv(100).decode().strip())
"""


def mac(lab: Lab, namespace: str, interface: str) -> str:
    fields = lab.run(namespace, ["ip", "-br", "link", "show", interface]).stdout.split()
    return fields[2]


def neighbour(lab: Lab, address: Address) -> str:
    return lab.run("client", ["ip", "neigh", "show", str(address), "dev", "front0"]).stdout


def forget_neighbours(lab: Lab) -> None:
    lab.run("client", ["ip", "neigh", "flush", "dev", "front0"])


def namespaces(prefix: str) -> set[str]:
    listed = run(["ip", "netns", "list"]).stdout.split()
    return {name for name in listed if name.startswith(prefix)}


def root_interfaces() -> str:
    return run(["ip", "-br", "link"]).stdout


def pids_inside(lab: Lab) -> set[int]:
    return {
        int(pid)
        for name in lab.topology.namespaces
        for pid in run(["ip", "netns", "pids", name]).stdout.split()
    }


def running(pids: set[int]) -> set[int]:
    """Those that run; not those that have ended and wait for their parent to notice."""
    return {pid for pid in pids if state(pid) not in "ZX"}


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def assert_nothing_left(lab: Lab, pids: set[int]) -> None:
    assert not namespaces(lab.topology.prefix)
    assert not running(pids)
    assert str(lab.folder) not in Path("/proc/mounts").read_text()
    assert not lab.folder.exists()


# -- the network --


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_client_reaches_each_backend_through_the_node(lab: Lab, number: int, family: int) -> None:
    name = f"lbt-backend{number}"
    assert lab.curl_name(lab.topology.back_addresses(name)[family]) == name


@pytest.mark.parametrize("vip", [VIP4, VIP6], ids=["ipv4", "ipv6"])
def test_the_node_has_the_vip(lab: Lab, vip: Address) -> None:
    forget_neighbours(lab)
    lab.answer(vip)
    assert mac(lab, "node1", "front0") in neighbour(lab, vip)


@pytest.mark.parametrize("vip", [VIP4, VIP6], ids=["ipv4", "ipv6"])
def test_nobody_but_the_node_answers_for_the_vip(lab: Lab, vip: Address) -> None:
    length = 128 if vip.version == 6 else 32
    lab.run("node1", ["ip", "addr", "del", f"{vip}/{length}", "dev", "front0"])
    try:
        forget_neighbours(lab)
        lab.answer(vip)
        wait_until("the client to give up", lambda: "FAILED" in neighbour(lab, vip))
    finally:
        nodad = ["nodad"] if vip.version == 6 else []
        lab.run("node1", ["ip", "addr", "add", f"{vip}/{length}", "dev", "front0", *nodad])
        forget_neighbours(lab)


@pytest.mark.parametrize("vip", [VIP4, VIP6], ids=["ipv4", "ipv6"])
def test_a_backend_answers_from_the_vip_straight_to_the_client(lab: Lab, vip: Address) -> None:
    there = ["ip", "neigh", "replace", str(vip), "dev", "front0"]
    address = mac(lab, "backend3", "front0")
    try:
        lab.run("client", [*there, "lladdr", address, "nud", "permanent"])
        assert lab.curl_name(vip) == "lbt-backend3"
    finally:
        lab.run("client", ["ip", "neigh", "del", str(vip), "dev", "front0"])


def test_all_client_addresses_are_usable(lab: Lab) -> None:
    for source in CLIENT4:
        target = f"http://{lab.topology.back_addresses('lbt-backend1')[0]}/"
        done = lab.run("client", ["curl", "-s", "--interface", str(source), target])
        assert done.stdout == "lbt-backend1\n"


def test_udp_servers_answer_from_the_address_that_was_asked(lab: Lab) -> None:
    lab.start_udp_servers()
    for name in lab.topology.backends:
        for address in lab.topology.back_addresses(name):
            question = [sys.executable, "-c", ASK_UDP, str(address), str(UDP_PORT)]
            assert lab.run("client", question).stdout.strip() == name


def test_checksums_are_complete_and_xdp_can_send(lab: Lab) -> None:
    for link in lab.topology.links:
        for namespace, interface in ((link.namespace, link.interface), ("switch", link.port)):
            features = lab.run(namespace, ["ethtool", "-k", interface]).stdout
            assert "tx-checksumming: off" in features
    for port in ("node1-f", "node1-b"):
        features = lab.run("switch", ["ethtool", "-k", port]).stdout
        assert "generic-receive-offload: on" in features


def test_bpf_file_system_is_mounted(lab: Lab) -> None:
    assert f" {lab.node_folder}/bpf bpf " in Path("/proc/mounts").read_text()


def test_unknown_namespace_is_an_error(lab: Lab) -> None:
    with pytest.raises(LabError, match="no namespace lbt-backend9"):
        lab.run("backend9", ["true"])


def test_a_failed_command_tells_what_it_said(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"(?s)exit status 3.*out.*err"):
        lab.run("client", ["sh", "-c", "echo out; echo err >&2; exit 3"])


# -- coming and going --


def test_nothing_is_left(lab: Lab) -> None:
    del lab  # it stands beside the other one, and must not notice
    before = root_interfaces()
    with Lab(prefix=OTHER, backends=2, mtu=9000) as other:
        assert namespaces(OTHER) == set(other.topology.namespaces)
        assert "mtu 9000" in other.run("backend2", ["ip", "link", "show", "back0"]).stdout
        pids = pids_inside(other)
        assert len(pids) == 4  # nginx: a master and a worker on each
        assert root_interfaces() == before
    assert_nothing_left(other, pids)
    assert root_interfaces() == before
    assert namespaces("lbt-")


def test_nothing_is_left_after_a_failure() -> None:
    pids: set[int] = set()
    with suppress(KeyboardInterrupt), Lab(prefix=OTHER, backends=1) as other:
        other.popen("client", ["sleep", "1000"])
        # A program that doesn't end when asked.
        other.popen("client", ["sh", "-c", "trap '' TERM; while :; do read -r x; done </dev/zero"])
        wait_until("both to run", lambda: len(pids_inside(other)) == 4)
        pids = pids_inside(other)
        raise KeyboardInterrupt
    assert len(pids) == 4
    assert_nothing_left(other, pids)


def test_a_half_built_lab_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Topology, "more_commands", lambda *_: [("-4", "rule add nonsense")])
    other = Lab(prefix=OTHER, backends=1)
    with pytest.raises(LabError, match="nonsense"):
        other.__enter__()
    assert_nothing_left(other, set())


def start_and_kill(signal_number: signal.Signals) -> set[int]:
    """A lab in another process that is killed in the middle; what still runs of it."""
    code = f"""
from lb.lab.lab import Lab
with Lab(prefix={OTHER!r}, backends=3) as lab:
    lab.popen("client", ["sleep", "1000"])
    print("up", flush=True)
    input()
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
        text=True,
    )
    assert owner.stdout
    assert owner.stdout.readline() == "up\n"
    left = pids_inside(Lab(prefix=OTHER, backends=3))
    owner.send_signal(signal_number)
    owner.communicate()
    return left


def test_ctrl_c_cleans_up() -> None:
    left = start_and_kill(signal.SIGINT)
    assert_nothing_left(Lab(prefix=OTHER), left)


def test_what_a_killed_lab_left_is_removed_by_the_next() -> None:
    left = start_and_kill(signal.SIGKILL)
    assert running(left) == left
    with Lab(prefix=OTHER, backends=1) as other:
        assert not running(left)
        assert namespaces(OTHER) == set(other.topology.namespaces)
        address, _ = other.topology.back_addresses("lbu-backend1")
        assert other.curl_name(address) == "lbu-backend1"
    assert_nothing_left(other, left)


def test_workers_without_their_master_are_found() -> None:
    with Lab(prefix=OTHER, backends=1) as other:
        pids = pids_inside(other)
        os.kill(min(pids), signal.SIGKILL)  # the master: its worker lives on, without a parent
        assert running({max(pids)})
    assert_nothing_left(other, pids)


def test_a_kept_lab_stays_until_it_is_taken_down() -> None:
    with Lab(prefix=OTHER, backends=1) as other:
        other.keep()
    pids = pids_inside(other)
    assert running(pids) == pids
    with pytest.raises(ConflictError, match="is up already"), Lab(prefix=OTHER):
        pass
    assert tear_down(OTHER)
    assert_nothing_left(other, pids)
    assert not tear_down(OTHER)
    assert not (ROOT / "lbu").exists()


def test_a_lab_in_use_is_left_alone(lab: Lab) -> None:
    with pytest.raises(ConflictError, match="in use"), Lab(prefix="lbt-"):
        pass
    with pytest.raises(ConflictError, match="in use"):
        tear_down("lbt-")
    assert namespaces("lbt-") == set(lab.topology.namespaces)


def test_somebody_elses_namespace_is_left_alone() -> None:
    run(["ip", "netns", "add", "lbu-client"])
    try:
        with pytest.raises(ConflictError, match="lbu-client exists"), Lab(prefix=OTHER):
            pass
        assert namespaces(OTHER) == {"lbu-client"}
    finally:
        run(["ip", "netns", "del", "lbu-client"])


@pytest.mark.parametrize("count", [0, 65])
def test_impossible_sizes_are_refused(count: int) -> None:
    with pytest.raises(UserError, match="not possible"):
        Lab(backends=count)
