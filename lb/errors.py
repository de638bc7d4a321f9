"""Every error that lb raises on purpose: whose fault it is, what to do next, and its exit code.

The exit codes are a promise to scripts (docs/reference/exit-codes.md); this is the one place that
gives them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """What `lbctl` and `lbd` exit with."""

    OK = 0
    DIFFERENT = 1  # differences, problems, a `check` that failed, something that `export` left out
    USAGE = 2  # bad input: nothing was changed
    NOT_FOUND = 3  # no such service, backend, file or interface
    CONFLICT = 4  # somebody else changed it meanwhile, it exists already, or a rollout has that split
    STORE_UNAVAILABLE = 5
    DATAPATH = 6  # the kernel, an interface or a map refused
    NOT_APPLIED = 7  # the change is stored, but some nodes have not applied it in time, or none is there
    CAPACITY = 8  # a map is full
    # How `lbctl rollout` and its --wait end, where not with 0 (promoted, or done what was asked).
    ROLLOUT_REFUSED = 20
    ROLLOUT_WORSE = 21
    ROLLOUT_UNHEALTHY = 22
    ROLLOUT_INCONCLUSIVE = 23
    ROLLOUT_EXPIRED = 24
    ROLLOUT_ABORTED = 25
    ROLLOUT_OVERRIDDEN = 26
    ROLLOUT_PAUSED = 27
    ROLLOUT_GOES_ON = 28
    INTERNAL = 70  # a bug in lb (EX_SOFTWARE of sysexits.h)
    OUTPUT = 74  # what was to be printed can't be written (EX_IOERR)
    INTERRUPTED = 130  # Ctrl-C: 128 + SIGINT, as shells report it


class LbError(Exception):
    """Base: one line that says what is wrong, and one that says what to do next."""

    exit_code = ExitCode.INTERNAL

    def __init__(
        self, message: str, *, hint: str = "", details: Mapping[str, object] | None = None
    ) -> None:
        """`details`: what programs are told besides."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details or {}

    def as_dict(self) -> dict[str, object]:
        """For `-o json`: {"error": {"kind", "message", "hint", "exit_code"}}, and the details."""
        return {
            "error": {
                "kind": type(self).__name__,
                "message": self.message,
                "hint": self.hint,
                "exit_code": int(self.exit_code),
            },
            **self.details,
        }


class UserError(LbError):
    """The input is wrong; nothing was changed."""

    exit_code = ExitCode.USAGE


class NotFoundError(LbError):
    """The named object does not exist."""

    exit_code = ExitCode.NOT_FOUND


class ConflictError(LbError):
    """Somebody else was faster, it exists already, or a rollout is changing that split."""

    exit_code = ExitCode.CONFLICT


class StoreUnavailable(LbError):
    """The store can't be reached, or not opened: a directory is there, or a newer lb made it."""

    exit_code = ExitCode.STORE_UNAVAILABLE


class StoreDenied(StoreUnavailable):
    """The store is there, but refuses this user: trying again does not help."""


class RevisionCompacted(LbError):
    """A watch or a read asked for a revision that the store no longer keeps: read anew."""

    exit_code = ExitCode.STORE_UNAVAILABLE


class DatapathError(LbError):
    """The kernel, an interface or a program refused."""

    exit_code = ExitCode.DATAPATH


class NotAppliedError(LbError):
    """`--wait` ran out of time, or no node is there; the change itself is stored."""

    exit_code = ExitCode.NOT_APPLIED


class CapacityError(LbError):
    """A map is full: says which, how large it is and what raises it."""

    exit_code = ExitCode.CAPACITY


class RolloutRefused(LbError):
    """The rollout can't begin, or can't do that now; nothing was changed."""

    exit_code = ExitCode.ROLLOUT_REFUSED


class RolloutWorse(LbError):
    """Aborted: the analysis found the canary worse."""

    exit_code = ExitCode.ROLLOUT_WORSE


class RolloutUnhealthy(LbError):
    """Aborted: no backend of the canary could be used any more."""

    exit_code = ExitCode.ROLLOUT_UNHEALTHY


class RolloutInconclusive(LbError):
    """Aborted: not enough data, or it could not be measured."""

    exit_code = ExitCode.ROLLOUT_INCONCLUSIVE


class RolloutExpired(LbError):
    """Aborted: its deadline has passed."""

    exit_code = ExitCode.ROLLOUT_EXPIRED


class RolloutAborted(LbError):
    """Aborted by a person."""

    exit_code = ExitCode.ROLLOUT_ABORTED


class RolloutOverridden(LbError):
    """Ended: somebody changed the split, which stays as they wrote it, or removed the service."""

    exit_code = ExitCode.ROLLOUT_OVERRIDDEN


class RolloutPaused(LbError):
    """It waits for a person: at a gate, or because somebody paused it."""

    exit_code = ExitCode.ROLLOUT_PAUSED


class RolloutGoesOn(LbError):
    """The rollout goes on: `--timeout` of the waiting is over, or it doesn't come to its end."""

    exit_code = ExitCode.ROLLOUT_GOES_ON


class OutputError(LbError):
    """What was to be printed can't be written. A change that was made is stored: the error says so."""

    exit_code = ExitCode.OUTPUT


class Interrupted(LbError):
    """Ctrl-C. A change that was made before is stored; a rollout goes on."""

    exit_code = ExitCode.INTERRUPTED
