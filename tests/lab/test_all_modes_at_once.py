"""Services of all modes side by side on one node, by IPv4 and IPv6, on each hook: connections that are
held, a download, and an upload, whose packets a tunnel's header makes too long.

Frugal with processes, because `make test-kernels` runs it on machines where each takes seconds.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

import pytest
from helpers import ENOUGH, create, held, outcomes, service

from lb.lab import nginx
from lb.lab.lab import Lab
from lb.lab.topology import VIP4, VIP6, Address
from lb.model.objects import Mode

SIZE = 1_000_000
PORTS = {mode: 8001 + number for number, mode in enumerate(Mode)}
SERVER = """
server {{
    {listen}
    location = / {{ return 200 "{name}\\n"; }}
    location /files/ {{ root {root}; }}
}}
"""


@pytest.fixture(scope="module")
def checksum(lab: Lab) -> Iterator[str]:
    """Every server listens on a port for each mode, and offers a file with this SHA-256."""
    listen = "".join(f"listen 0.0.0.0:{port}; listen [::]:{port};" for port in PORTS.values())
    (lab.folder / "files").mkdir(exist_ok=True)
    data = random.Random(SIZE).randbytes(SIZE)
    (lab.folder / "files/modes").write_bytes(data)
    for name in lab.topology.backends:
        folder = lab.folder / name
        (folder / "more-modes.conf").write_text(SERVER.format(listen=listen, name=name, root=lab.folder))
        lab.run(name, [*nginx.command(folder), "-s", "reload"])
    yield hashlib.sha256(data).hexdigest()
    for name in lab.topology.backends:
        (lab.folder / name / "more-modes.conf").unlink()
        lab.run(name, [*nginx.command(lab.folder / name), "-s", "reload"])


@pytest.mark.parametrize("hook", ["xdp", "xdp-generic", "tc"])
def test_all_modes_at_once(
    node: Callable[[str], Lab], checksum: str, hook: str, record_property: Callable[[str, object], None]
) -> None:
    lab = node(hook)
    lab.open_tunnels(together=True)
    create(
        lab,
        *(
            service(lab, f"{mode}{vip.version}", vip, mode=mode, port=port)
            for mode, port in PORTS.items()
            for vip in (VIP4, VIP6)
        ),
    )
    before = outcomes(lab)
    wrong = {mode: "; ".join(_tried(lab, port, checksum)) for mode, port in PORTS.items()}
    record_property("modes", {str(mode): words or "works" for mode, words in wrong.items()})
    assert not any(wrong.values()), wrong
    after = outcomes(lab)
    for outcome in ("forward_redirect", "reply_redirect"):
        assert after[outcome] > before[outcome]


def _tried(lab: Lab, port: int, checksum: str) -> Iterator[str]:
    """What doesn't work there, in words."""
    everybody = set(lab.topology.backends)
    for vip in (VIP4, VIP6):
        with held(lab, vip, ENOUGH, port=port) as connections:
            answers = connections.ask()
            if set(answers) != everybody:
                yield f"{vip}: answers from {sorted(set(answers))}"
            if connections.ask() != answers:
                yield f"{vip}: connections moved"
        if (got := _transfer(lab, vip, port)) != f"{checksum} 200 {SIZE}":
            yield f"{vip}: download, upload: {got}"


def _transfer(lab: Lab, vip: Address, port: int) -> str:
    """The checksum of the file; then what the server says to an upload, and how much of it was sent."""
    url = f"http://{f'[{vip}]' if vip.version == 6 else vip}:{port}"
    curl = "curl -sS --noproxy '*' --max-time 60"
    script = (
        f"set -o pipefail; {curl} {url}/files/modes | sha256sum | cut -d' ' -f1 &&"
        f" head -c {SIZE} /dev/zero | {curl} -o /dev/null -w '%{{http_code}} %{{size_upload}}'"
        f" --data-binary @- {url}/"
    )
    return " ".join(lab.run("client", ["bash", "-c", script], check=False, timeout=130).stdout.split())
