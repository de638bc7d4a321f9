"""`python -m lb.lab up|down|fleet-up|fleet-down|demo`: what `make lab`, `make fleet`, … run."""

from __future__ import annotations

import shlex
import signal
import sys
from typing import Annotated

import typer

from lb.errors import ConflictError, LbError
from lb.lab import demo as demo_module
from lb.lab import fleet as fleet_module
from lb.lab.example import SERVICE, add_web, create_web
from lb.lab.fleet import Fleet
from lb.lab.lab import Lab, tear_down
from lb.lab.node import program
from lb.lab.topology import VIP4
from lb.model.objects import Mode
from lb.settings import Hook

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

ModeOption = Annotated[Mode, typer.Option(envvar="MODE", help="Forwarding mode of the service.")]
HookOption = Annotated[Hook, typer.Option(envvar="HOOK", help="Where in the kernel lb runs.")]


@app.command()
def up(mode: ModeOption = Mode.DSR, hook: HookOption = Hook.AUTO) -> None:
    """Build the lab with a service of 4 backends, and leave it up."""
    lab = Lab()
    try:
        with lab:
            print("building the lab …", flush=True)
            lab.start_lbd(hook.value)
            print(lab.lbd_ready_line)
            create_web(lab, mode.value, print)
            lab.keep()
    except ConflictError:
        if not lab.is_kept:
            raise
        print("the lab is up already")
    _print_invitation(lab)


@app.command()
def down() -> None:
    """Remove the lab, whoever left it."""
    print("the lab is removed" if tear_down() else "there is no lab")


@app.command()
def fleet_up(hook: HookOption = Hook.AUTO) -> None:
    """Build a fleet (etcd, three nodes, a router) with a service of 4 backends, and leave it up."""
    fleet = Fleet()
    try:
        with fleet:
            print("building the fleet …", flush=True)
            fleet.start(hook.value)
            for node in fleet.nodes:
                print(node.lbd_ready_line)
            add_web(fleet, Mode.DSR.value, print)
            fleet.keep()
    except ConflictError:
        if not fleet.is_kept:
            raise
        print("the fleet is up already")
    print(invitation(fleet))


@app.command()
def fleet_down() -> None:
    """Remove the fleet, whoever left it."""
    print("the fleet is removed" if fleet_module.tear_down() else "there is no fleet")


@app.command()
def demo(
    mode: ModeOption = Mode.DSR,
    hook: HookOption = Hook.AUTO,
    requests: Annotated[
        int, typer.Option(envvar="REQUESTS", min=1, help="Connections of each measurement.")
    ] = demo_module.REQUESTS,
) -> None:
    """Show weighted load balancing of real connections, with a live change."""
    raise typer.Exit(0 if demo_module.demo(mode.value, hook.value, requests) else 1)


def _print_invitation(lab: Lab) -> None:
    topology = lab.topology
    lbctl = shlex.join(program("lbctl"))
    last = topology.backends[-1]
    print(
        f"""
The lab is up. As root, try:

  export LB_CONFIG={lab.config}
  alias lbctl={shlex.quote(lbctl)}

  ip netns exec {topology.client} curl http://{VIP4}/
  lbctl status
  lbctl backend list {SERVICE}
  lbctl backend weight {SERVICE} {last} 100 --wait
  lbctl backend drain {SERVICE} {topology.backends[0]} --wait
  lbctl trace --help
  ip netns exec {topology.client} wrk -c 32 -d 5s -H 'Connection: close' http://{VIP4}/
  ip netns exec {last} tcpdump -ni any -c 10 tcp port 80
  tail {lab.lbd_log}

Remove it with: sudo make lab-down"""
    )


def invitation(fleet: Fleet) -> str:
    """What to try in a fleet."""
    topology, (first, second, _) = fleet.topology, fleet.nodes
    last = topology.backends[-1]
    here = "ip netns exec"
    return f"""
The fleet is up. As root, try:

  export LB_CONFIG={first.config}
  alias lbctl={shlex.quote(shlex.join(["nsenter", f"--net=/run/netns/{first.name}", *program("lbctl")]))}

  {here} {topology.client} curl http://{VIP4}/
  lbctl node list
  lbctl status
  lbctl backend weight {SERVICE} {last} 100 --wait
  lbctl history
  {here} {first.name} etcdctl --endpoints={topology.control_address(topology.members[0])}:2379 \
    get --prefix --keys-only /lb/
  {here} {topology.router} ip route show {VIP4}
  {here} {topology.client} wrk -c 32 -d 5s -H 'Connection: close' http://{VIP4}/
  kill -9 $(ip netns pids {second.name})   # its lbd; clients don't notice
  tail {second.lbd_log}

Remove it with: sudo make fleet-down"""


def main() -> None:
    """Run the command; ends with the exit code of the error, if there is one."""
    # A closed terminal or a `kill` is to clean up as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        app()
    except LbError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        raise SystemExit(int(error.exit_code)) from None
