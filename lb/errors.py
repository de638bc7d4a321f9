"""Every error that lb raises on purpose: whose fault it is, what to do next, and its exit code.

The exit codes are a promise to scripts (docs/reference/exit-codes.md); this is the one place that
gives them out.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What `lbctl` and `lbd` exit with."""

    OK = 0
    DIFFERENT = 1  # `lbctl diff` found differences, `lbctl doctor` problems, `lbctl check` failed
    USAGE = 2  # bad input: nothing was changed
    NOT_FOUND = 3  # no such service, backend, file or interface
    CONFLICT = 4  # somebody else changed it meanwhile, or it exists already
    STORE_UNAVAILABLE = 5
    DATAPATH = 6  # the kernel, an interface or a map refused
    NOT_APPLIED = 7  # --wait ran out of time: the change is stored, but some nodes have not applied it
    CAPACITY = 8  # a map is full
    INTERNAL = 70  # a bug in lb (EX_SOFTWARE of sysexits.h)


class LbError(Exception):
    """Base: one line that says what is wrong, and one that says what to do next."""

    exit_code = ExitCode.INTERNAL

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_dict(self) -> dict[str, object]:
        """For `-o json`: {"error": {"kind", "message", "hint", "exit_code"}}."""
        return {
            "error": {
                "kind": type(self).__name__,
                "message": self.message,
                "hint": self.hint,
                "exit_code": int(self.exit_code),
            }
        }


class UserError(LbError):
    """The input is wrong; nothing was changed."""

    exit_code = ExitCode.USAGE


class NotFoundError(LbError):
    """The named object does not exist."""

    exit_code = ExitCode.NOT_FOUND


class ConflictError(LbError):
    """A compare-and-set lost, or the object exists already."""

    exit_code = ExitCode.CONFLICT


class StoreUnavailable(LbError):
    """The store can't be reached, or not opened."""

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
    """`--wait` ran out of time; the change itself is stored."""

    exit_code = ExitCode.NOT_APPLIED


class CapacityError(LbError):
    """A map is full: says which, how large it is and what raises it."""

    exit_code = ExitCode.CAPACITY
