"""From what was typed to values, and from values to what is printed."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from lb.core.state import DesiredState, reason
from lb.errors import LbError, NotFoundError, UserError
from lb.model import keys
from lb.model.health import seconds
from lb.model.manifest import explain
from lb.model.objects import Address, Document

D = TypeVar("D", bound=Document)


def build(kind: type[D], **fields: Any) -> D:
    """A document of what was typed. Raises UserError in the words of the command line."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        message = explain(error.errors()[0], kind)
        raise UserError(
            message,
            hint=f"nothing was changed; `lbctl schema {kind.__name__.lower()}` says what is valid",
        ) from None


def rebuild(document: D, **fields: Any) -> D:
    """The document with some settings replaced, and checked like a new one."""
    return build(type(document), **{**document.model_dump(), **fields})


def endpoint(text: str, what: str) -> tuple[str, str | None]:
    """Address and port, if there is one, of `ADDRESS`, `ADDRESS:PORT`, `[V6]` or `[V6]:PORT`.

    Whether they are an address and a port is for the model to say. Raises UserError.
    """
    if text.startswith("["):
        address, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")) or rest == ":":
            raise UserError(
                f"{what}: {text!r} is not [ADDRESS]:PORT", hint="for example [2001:db8::1]:80"
            )
        return address, rest[1:] or None
    if text.count(":") > 1:
        return text, None  # IPv6 without brackets has no port
    address, colon, port = text.partition(":")
    if colon and not port:
        raise UserError(
            f"{what}: there is no port behind the colon of {text!r}", hint=f"for example {address}:80"
        )
    return address, port or None


def address(text: str, what: str) -> Address:
    """An IPv4 or IPv6 address. Raises UserError."""
    try:
        return ip_address(text)
    except ValueError:
        raise UserError(
            f"{what}: {text!r} is not an IP address", hint="for example 198.51.100.100 or 2001:db8::100"
        ) from None


def socket(text: str, what: str) -> tuple[str, str]:
    """Like endpoint(), where the port has to be there."""
    address, port = endpoint(text, what)
    if port is None:
        example = "198.51.100.100:80"
        if _is_address(address):
            example = f"[{address}]:80" if ":" in address else f"{address}:80"
        raise UserError(f"{what}: {text!r} has no port", hint=f"for example {example}")
    return address, port


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def unread(file: str | Path, error: OSError | UnicodeDecodeError, hint: str) -> UserError:
    """The error for a file that can't be read."""
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"{file} is no text in UTF-8", hint=hint)
    if isinstance(error, IsADirectoryError):
        return UserError(f"{file} is a directory", hint=f"name a file in it; {hint}")
    return UserError(f"{file}: {error.strerror}", hint=hint)


def ports(text: str) -> tuple[str, str | None]:
    """80, 8000-8100 or any: the first port and, of a range, the last; for the model to check."""
    if text == "any":
        return "1", "65535"
    first, dash, last = text.partition("-")
    return (first, last) if dash else (text, None)


def no_such(message: str, name: str, known: Iterable[str], hint: str) -> NotFoundError:
    """The error for a name that isn't there, with close ones in the hint."""
    close = difflib.get_close_matches(name, list(known), n=3)
    meant = " or ".join(repr(each) for each in close)
    return NotFoundError(message, hint=f"did you mean {meant}?" if meant else hint)


def no_such_service(name: str, state: DesiredState) -> LbError:
    """Not there, or there and unreadable."""
    key = keys.service(name)
    if key in state.versions:
        return unreadable(f"service {name!r}", key, state)
    hint = "`lbctl service list` names those that exist"
    if not state.services:
        hint = f"there are none yet; add it: lbctl service add {name} --vip ADDRESS:PORT"
    return no_such(f"no service {name!r}", name, state.services, hint)


def no_such_backend(service: str, name: str, state: DesiredState) -> LbError:
    """Not there, or there and unreadable."""
    key = keys.backend(service, name)
    if key in state.versions:
        return unreadable(f"backend {service}/{name}", key, state)
    return no_such(
        f"service {service!r} has no backend {name!r}",
        name,
        [backend.name for backend in state.backends_of(service)],
        f"`lbctl backend list {service}` names those that exist",
    )


def unreadable(what: str, key: str, state: DesiredState) -> UserError:
    """The error for an object whose document is quarantined. What nodes have in force of it only they
    know."""
    reasons = [reason(problem) for problem in state.problems if problem.where == key]
    return UserError(
        f"{what} is quarantined: {'; '.join(reasons) or 'its document is not valid'}",
        hint="`lbctl status` shows what is in force; replace it with `lbctl apply`, or remove it",
    )


def duration(text: str, option: str) -> float:
    """10m in seconds. Raises UserError."""
    try:
        found = seconds(text)
        assert isinstance(found, float)
    except ValueError as error:
        raise UserError(f"{option}: {error}", hint=f"for example {option} 10m") from None
    return found


def remaining(left: float) -> str:
    """So many seconds, in the largest unit in which it is two or more: 90 s, 10 min, 3 h, 9 days."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if left >= 2 * size:
            return f"{left / size:.0f} {unit}"
    return f"{max(0.0, left):.0f} s"


def moment(at: float) -> str:
    """A time of the clock, here."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def label(key: str) -> str:
    """What a key of the store is called on the command line: "backend web/b1"."""
    kind, _, name = key.removeprefix(keys.ROOT).partition("/")
    return f"{kind.removesuffix('s')} {name}" if name else kind
