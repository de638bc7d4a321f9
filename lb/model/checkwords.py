"""Health checks in words: the short form of the command line, and what is wrong with a long one."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lb.model.document import Document
from lb.model.health import (
    AnyCheck,
    DnsCheck,
    ExecCheck,
    GrpcCheck,
    Health,
    HttpCheck,
    HttpsCheck,
    Overrides,
    Passive,
)
from lb.model.meant import close

KINDS: dict[str, type[Document]] = {
    each.model_fields["kind"].default: each for each in get_args(AnyCheck)
}
FORMS = (
    "tcp, tcp:PORT, http:[PORT]/PATH, https:[PORT]/PATH, grpc:[PORT][/SERVICE], dns:[PORT/]NAME,"
    " exec:/PROGRAM"
)


def parse_check(text: str) -> AnyCheck:
    """A check of its short form, as FORMS lists them. Raises ValueError, in words."""
    kind, _, rest = text.partition(":")
    port, path = _port(rest)
    fields: dict[str, Any] = {"kind": kind, "port": port}
    if kind in ("http", "https"):
        fields["path"] = path or "/"
    elif kind == "grpc":
        fields["service"] = path.removeprefix("/")
    elif kind == "dns":
        fields["name"] = path.removeprefix("/")
    elif kind == "exec":
        fields["argv"] = rest.split()
    elif kind != "tcp" or path:
        raise ValueError(f"{text!r} is not one of {FORMS}; `lbctl apply` takes all settings")
    try:
        return Health.model_validate({"check": fields}).check
    except ValidationError as error:
        raise ValueError(explain_health(error.errors()[0], Health)) from None


def _port(rest: str) -> tuple[int | None, str]:
    found = re.fullmatch(r"(\d+)(/.*)?", rest)
    return (int(found[1]), found[2] or "") if found else (None, rest)


def describe_check(check: AnyCheck) -> str:
    """In short: "http:8080/healthz"."""
    port = str(check.port or "")
    if isinstance(check, HttpCheck | HttpsCheck):
        return f"{check.kind}:{port}{check.path}"
    if isinstance(check, GrpcCheck):
        return f"grpc:{port}/{check.service}".removesuffix("/").removesuffix(":")
    if isinstance(check, DnsCheck):
        return f"dns:{port}/{check.name} {check.type}" if port else f"dns:{check.name} {check.type}"
    if isinstance(check, ExecCheck):
        return f"exec:{' '.join(check.argv)}"
    return f"{check.kind}:{port}".removesuffix(":")


def explain_health(error: ErrorDetails, model: type[Document]) -> str:
    """What is wrong below `health`: "health.interval: must be at least 0.1, not 0"."""
    names: list[str] = []
    owner: type[Document] = Overrides if model.__name__ == "Backend" else Health
    for part in error["loc"]:
        if names and names[-1] == "check" and part in KINDS:
            owner = KINDS[str(part)]  # pydantic names the union's member there
        elif part == "passive":
            names.append(part)
            owner = Passive
        elif part != "[key]":
            names.append(str(part))
    return f"{'.'.join(names)}: {_what(error, names[-1], owner)}"


def _what(error: ErrorDetails, name: str, owner: type[Document]) -> str:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    match kind:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return f"is not a setting of {_article(owner)}{close(name, owner.model_fields)}"
        case "value_error":
            return error["msg"].removeprefix("Value error, ")
        case "union_tag_not_found":
            return f"has to say its kind: {', '.join(KINDS)}"
        case "union_tag_invalid":
            return f"kind must be one of {', '.join(KINDS)}; not {context['tag']!r}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a mapping, not {given!r}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}, not {given}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}, not {given}"
        case "enum" | "literal_error":
            return f"must be {context['expected'].replace(chr(39), '')}, not {given!r}"
        case "bool_type":
            return f"must be true or false, not {given!r}"
        case "int_type" | "int_from_float":
            return f"must be a whole number, not {given!r}"
        case "float_type" | "float_parsing" | "finite_number":
            return f"must be a number, not {given!r}"
        case "string_type":
            return f"must be text, not {given!r}; quotes make it text"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case _:
            return f"{error['msg'][:1].lower()}{error['msg'][1:]}, not {given!r}"


def _article(owner: type[Document]) -> str:
    kind = owner.model_fields.get("kind")
    if owner is Passive:
        return "passive detection"
    if kind is None:
        return "a health check"
    return f"{'an' if kind.default[0] in 'eh' else 'a'} {kind.default} check"
