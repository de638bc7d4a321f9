"""The `lbd` command."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from pyroute2 import IPRoute

import lb
from lb import settings as settings_module
from lb.datapath import attach, lifecycle
from lb.datapath.lifecycle import Lock
from lb.errors import ExitCode, LbError, UserError
from lb.model.reports import Problem
from lb.node.daemon import Daemon
from lb.node.happenings import Audit, Stop
from lb.settings import Hook, Settings
from lb.store.ending import leave
from lb.store.opening import open_store

log = logging.getLogger("lbd")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"lbd {lb.__version__}")
        raise typer.Exit


@app.command()
def lbd(
    interface: Annotated[
        list[str] | None,
        typer.Option("--interface", "-i", help="Interface to attach to; may be repeated."),
    ] = None,
    hook: Annotated[Hook | None, typer.Option(help="Where in the kernel to run.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file.")] = None,
    store: Annotated[str | None, typer.Option(help="Store to use instead of the settings' one.")] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Stop the lbd that runs here, detach its programs and remove all it left.",
        ),
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run the node's daemon: it keeps the kernel's maps true to the store.

    It runs in the foreground and logs to standard error. When it ends, killed or not, the kernel goes
    on forwarding; the next lbd adopts what is there. `lbd --detach` removes everything.
    """
    given: dict[str, object] = {"hook": hook, "store": store}
    if interface:
        given["interfaces"] = tuple(interface)
    base = settings_module.load(config)
    settings = base.model_copy(update={k: v for k, v in given.items() if v is not None})
    if os.geteuid() != 0:
        raise UserError("lbd needs root", hint="sudo lbd …")
    if detach:
        _detach(settings)
    else:
        _serve(settings)


def _detach(settings: Settings) -> None:
    with Lock(settings.pin_dir) as lock, IPRoute() as ip:
        lock.take_over()
        released = lifecycle.take_down(ip, settings.pin_dir)
    log.info("detached from %s; all pins removed", ", ".join(released) or "no interface")


def _serve(settings: Settings) -> None:
    with Lock(settings.pin_dir) as lock, IPRoute() as ip:
        lock.acquire()
        began = time.monotonic()
        # The store first: if it can't be opened, nothing has been touched.
        with open_store(settings.store, settings.etcd) as store:
            lifecycle.ensure_bpf_fs(settings.pin_dir)
            attach.check(ip, settings.interfaces)
            maps, made = lifecycle.open_maps(settings.pin_dir, settings.limits)
            if made:
                log.info("another version of lbd was here: made %s, kept all else", ", ".join(made))
            attachment = lifecycle.bring_up(ip, settings, maps)
            log.info(
                "attached hook=%s (%s) to %s in %.1f s",
                attachment.hook,
                attachment.why,
                ", ".join(link.name for link in attachment.interfaces),
                time.monotonic() - began,
            )
            notes = tuple(
                Problem(
                    where=settings.node,
                    message=f"pinned map is not as lb.toml says: {misfit}",
                    hint="lbd --detach, then start lbd, to make the maps anew",
                )
                for misfit in maps.misfits(settings.limits)
            )
            keep_memory()
            daemon = Daemon(settings, store, ip, maps, attachment, notes)

            # SimpleQueue.put is reentrant, so a handler may call it at any moment.
            def tell(happening: Stop | Audit) -> Callable[[int, FrameType | None], None]:
                return lambda _signal, _frame: daemon.inbox.put(happening)

            signal.signal(signal.SIGTERM, tell(Stop()))
            signal.signal(signal.SIGINT, tell(Stop()))
            signal.signal(signal.SIGHUP, tell(Audit()))
            daemon.run()


def keep_memory() -> None:
    """Have glibc keep what planning frees: arrays of some 512 kB, again and again, each of which it
    would give back to the kernel and fault in anew. Measured for one change of weight, with 10 backends:
    1,153 page faults and 3.8 ms of processor time before, 3 and 1.5 ms with it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # another C library has its own ways
        libc.mallopt(_M_ARENA_MAX, 1)  # the others' thresholds are fixed; threads here take turns anyway
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def main() -> NoReturn:
    """Entry point: errors become one line and an exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="lbd: %(message)s", force=True)
    try:
        app()
    except LbError as error:
        sys.stderr.write(f"lbd: error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        leave(error.exit_code)
    except KeyboardInterrupt:
        leave(ExitCode.INTERNAL)
    except SystemExit as end:  # how Typer ends
        leave(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException:  # noqa: BLE001 - a bug; a process that hangs would not be started again
        traceback.print_exc()
        leave(ExitCode.INTERNAL)
    leave(ExitCode.OK)


if __name__ == "__main__":
    main()
