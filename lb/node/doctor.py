"""`lbctl doctor`: what would go wrong, found and named before it does. Changes nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from lb.core.state import DesiredState, parse
from lb.datapath import attach, headers, lifecycle, release, sources
from lb.errors import LbError
from lb.model import keys
from lb.node.forwarding import switch, translated
from lb.settings import Settings
from lb.store.opening import is_shared, open_store

_A_DAY = 86400.0


@dataclass(frozen=True)
class Check:
    """One finding. `ok` is None where it could not be found out, or where it may be as wanted."""

    name: str
    ok: bool | None
    detail: str
    hint: str = ""


def run(settings: Settings) -> list[Check]:
    """All checks, in the order in which a newcomer would meet the problems."""
    found: list[Check] = []
    for each in (_machine, _toolchain, _pins, _interfaces, _state):
        try:
            found.extend(each(settings))
        except LbError as error:
            found.append(Check(each.__name__.strip("_"), False, error.message, error.hint))
    return found


def _machine(_settings: Settings) -> Iterator[Check]:
    root = os.geteuid() == 0
    yield Check("root", root, "running as root" if root else "not root", "" if root else "use sudo")
    is_new = release.version() >= release.LEAST
    yield Check(
        "kernel",
        is_new,
        f"Linux {platform.release()}",
        "" if is_new else f"lb needs Linux {'.'.join(map(str, release.LEAST))} or newer",
    )
    for feature in release.FEATURES:
        if not feature.is_here():
            yield Check("kernel", None, f"too old for: {feature.what}", f"instead: {feature.instead}")
    jit = _sysctl("net/core/bpf_jit_enable")
    yield Check(
        "jit",
        None if jit is None else jit != "0",
        f"net.core.bpf_jit_enable = {jit}",
        "sysctl -w net.core.bpf_jit_enable=1" if jit == "0" else "",
    )
    # A clock that is behind the sources it runs was never set.
    newest = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    on_time = time.time() > newest - _A_DAY
    yield Check(
        "clock",
        on_time,
        time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "" if on_time else "set the clock (timedatectl set-ntp true)",
    )


def _toolchain(_settings: Settings) -> Iterator[Check]:
    # In a child: importing BCC brings LLVM along.
    bcc = subprocess.run(
        [sys.executable, "-c", "import bcc; bcc.BPF; print(bcc.__version__)"],
        capture_output=True,
        text=True,
        check=False,
    )
    yield Check(
        "bcc",
        bcc.returncode == 0,
        f"BCC {bcc.stdout.strip()}" if bcc.returncode == 0 else _last_line(bcc.stderr),
        ""
        if bcc.returncode == 0
        else "apt-get install python3-bpfcc, and make the venv with --system-site-packages"
        " (bcc on PyPI is another package)",
    )
    yield Check("headers", True, headers.find().origin)
    yield Check("sources", True, str(sources.directory()))


def _pins(settings: Settings) -> Iterator[Check]:
    pin_dir = settings.pin_dir
    usual = pin_dir.is_relative_to("/sys/fs/bpf")
    mounted = lifecycle.on_bpf_fs(pin_dir)
    yield Check(
        "bpf file system",
        mounted or (None if usual else False),
        f"{pin_dir} is {'' if mounted else 'not '}on one",
        ""
        if mounted
        else "lbd mounts it at its start"
        if usual
        else f"mount -t bpf bpf {pin_dir.parent}",
    )


def _interfaces(settings: Settings) -> Iterator[Check]:
    with IPRoute() as ip:
        for name in settings.interfaces:
            yield from _guarded(f"interface {name}", _interface(ip, settings, name))
        mtus = {i.mtu: i.name for name in settings.interfaces for i in attach.by_name(ip, name)}
        if len(mtus) > 1:
            small, large = min(mtus), max(mtus)
            yield Check(
                "mtu",
                False,
                f"{mtus[large]} takes packets of {large} bytes, {mtus[small]} only of {small}:"
                " larger ones that are sent on there are lost",
                f"ip link set {mtus[small]} mtu {large}, or lower the other",
            )
    if not settings.interfaces:
        yield Check("interfaces", None, "none named in lb.toml", "name them, or use lbd --interface")


def _interface(ip: IPRoute, settings: Settings, name: str) -> Iterator[Check]:
    (present,) = attach.check(ip, [name])
    label = f"interface {name}"
    ours = lifecycle.our_attachments(settings.pin_dir)
    hooks = attach.attached_hooks(ip, present, ours)
    if present.xdp_program and present.xdp_program not in ours.programs:
        yield Check(
            label,
            False,
            f"carries somebody else's XDP program {attach.program_name(present.xdp_program)}",
            f"ip link set {name} xdp off, or use lbd --hook tc",
        )
    elif hooks:
        yield Check(label, True, f"lb is attached ({', '.join(sorted(hooks))})")
    else:
        yield Check(label, True, "up, and free")
    if present.mtu > attach.XDP_MTU:
        yield Check(
            label,
            None,
            f"MTU {present.mtu} is more than XDP's native mode takes on most drivers",
            f"ip link set {name} mtu {attach.XDP_MTU}, or let lbd --hook auto take tc",
        )
    if present.kind == "veth":
        yield Check(
            label,
            None,
            "is a veth: XDP sees the unfinished checksums of a peer that offloads them",
            "at the peer: ethtool -K PEER tx off",
        )


def _state(settings: Settings) -> Iterator[Check]:
    file = None if is_shared(settings.store) else Path(settings.store.removeprefix("sqlite://"))
    if file is not None and not file.exists():
        yield Check("store", None, f"{settings.store} does not exist yet", "the first change makes it")
        return
    state = _read(settings)
    yield Check("store", True, f"{settings.store} at revision {state.revision}")
    for problem in state.problems:
        yield Check(problem.where, False, problem.message, problem.hint)
    alive = settings.node in state.nodes
    yield Check(
        "lbd",
        alive or None,
        f"node {settings.node} {'reports' if alive else 'does not report'}",
        "" if alive else "start lbd on this machine",
    )
    with IPRoute() as ip:
        local = {address.get_attr("IFA_ADDRESS") for address in ip.get_addr()}
    for service in state.services.values():
        if str(service.vip) not in local:
            yield Check(
                f"VIP {service.vip}",
                None,
                "is not an address of this machine, so nobody here answers ARP or NDP for it",
                "route it here, or add it: ip address add … dev …",
            )
    for version in sorted(translated(state.services.values())):
        name = switch(version)
        value = _sysctl(name.replace(".", "/"))
        yield Check(name, value == "1", f"= {value}", "" if value == "1" else f"sysctl -w {name}=1")


def _read(settings: Settings) -> DesiredState:
    with open_store(settings.store, settings.etcd) as store:
        snapshot = store.read(keys.EVERYTHING)
    return parse(snapshot.revision, snapshot.entries, created=snapshot.created)


def _guarded(name: str, checks: Iterator[Check]) -> list[Check]:
    try:
        return list(checks)
    except LbError as error:
        return [Check(name, False, error.message, error.hint)]


def _sysctl(path: str) -> str | None:
    try:
        return Path("/proc/sys", path).read_text().strip()
    except OSError:
        return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"
