"""The analysis file: by what a canary is judged, for `lbctl rollout start --analysis`.

A metric is one of the kernel's (lb/core/measures.py has them all), or asked outside: a Prometheus query,
a program, a webhook. Everything wrong is a UserError that begins with file, line and column.
"""

from __future__ import annotations

import re
from enum import StrEnum
from textwrap import shorten
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator
from pydantic_core import ErrorDetails

from lb.errors import UserError
from lb.model.document import LARGEST_FIGURE, Document, Written
from lb.model.health import DURATION, Flag, Line, can_be_run, seconds
from lb.model.marked import Marked
from lb.model.meant import close

MAX_METRICS = 32  # each takes its part of the allowance for false alarms

_HINT = "`lbctl schema analysis` prints what an analysis file may hold"
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%")


class KernelMetric(StrEnum):
    """What lb's own programs see; lb/core/measures.py says how each is made of FlowTotals."""

    ERRORS = "errors"
    FAILED_HANDSHAKES = "failed_handshakes"
    RESETS = "resets"
    CLIENT_RESETS = "client_resets"
    UNSERVED = "unserved"
    HTTP_5XX = "http_5xx"
    HTTP_4XX = "http_4xx"
    SYN_RETRANSMISSIONS = "syn_retransmissions"
    RETRANSMITS = "retransmits"
    CLIENT_RETRANSMITS = "client_retransmits"
    HANDSHAKE_P50 = "handshake_p50"
    HANDSHAKE_P95 = "handshake_p95"
    HANDSHAKE_P99 = "handshake_p99"
    FIRST_BYTE_P50 = "first_byte_p50"
    FIRST_BYTE_P95 = "first_byte_p95"
    FIRST_BYTE_P99 = "first_byte_p99"


def figure(value: object) -> object:
    """0.01 or "1%"; a time as "250ms" is in seconds."""
    if isinstance(value, str):
        found = _PERCENT.fullmatch(value.strip())
        return float(found[1]) / 100 if found else seconds(value)
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a figure; write 0.01, 1% or 250ms")
    return value


_FIGURE = Written(figure, r"^[0-9]+(\.[0-9]+)?( ?%|ms|s|m|h)?$")
Figure = Annotated[float, Field(ge=0, le=LARGEST_FIGURE), _FIGURE]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Timeout = Annotated[float, Field(ge=0.1, le=60), DURATION]

_PLACES = "{service}, {pool}, {backends} (joined with |), {step}, {share} and {seconds} are filled in"


def _url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s]*", value):
        raise ValueError(f"{value!r} is not a URL; write http://host:port/path")
    return value


Url = Annotated[Text, BeforeValidator(lambda value: _url(value) if isinstance(value, str) else value)]


class Prometheus(Document):
    """A query of a Prometheus server; its answer is one number."""

    url: Url = Field(description="Of the server, without /api/v1/query.")
    query: Text = Field(description=f"PromQL, for the canary and for the stable pool; {_PLACES}.")
    stable_query: Text | None = Field(
        default=None, description="Another query for the stable pool; none = the same one."
    )
    headers: dict[Line, str] = Field(default={}, max_length=32, description="Headers to send.")
    timeout: Timeout = Field(default=10.0, description="Seconds after which no answer is an error.")


class Command(Document):
    """A program of the node, without a shell. It gets the context as JSON on standard input, and prints
    a number (the canary's), or JSON: {"canary": 1.5, "stable": 1.2}. Nodes run programs of one folder
    only (`exec_dir` in lb.toml)."""

    argv: tuple[Text, ...] = Field(
        min_length=1, max_length=64, description="Program, with its whole path, and its arguments."
    )
    timeout: Timeout = Field(default=10.0, description="Seconds after which it is ended.")

    _check_argv = field_validator("argv")(can_be_run)


class Webhook(Document):
    """A URL that the context is posted to as JSON; its answer is what a command prints."""

    url: Url = Field(description="Where to.")
    headers: dict[Line, str] = Field(default={}, max_length=32, description="More headers.")
    timeout: Timeout = Field(default=10.0, description="Seconds after which no answer is an error.")


SOURCES: dict[str, type[Document]] = {"prometheus": Prometheus, "command": Command, "webhook": Webhook}


class Metric(Document):
    """One thing that a canary is judged by. Without a source it is the kernel's metric of that name."""

    name: Name = Field(description="Of this metric, in verdicts.")
    kernel: KernelMetric | None = Field(
        default=None, description="The kernel's metric; none = the one called like `name`."
    )
    prometheus: Prometheus | None = Field(default=None, description="Ask Prometheus.")
    command: Command | None = Field(default=None, description="Run a program.")
    webhook: Webhook | None = Field(default=None, description="Ask a URL.")
    limit: Figure | None = Field(
        default=None,
        description="The canary's figure must not be worse, whatever the stable pool's is: 1%, 250ms.",
    )
    compare: Flag | None = Field(
        default=None,
        description="Compare with the stable pool? none = yes, unless there is a `limit`.",
    )
    margin: Figure | None = Field(
        default=None,
        description="How much worse than the stable pool counts at all. Of a share: a difference (0.5%);"
        " of everything else: relative (10% = 1.1 times); none = by the kind.",
    )
    worse: Literal["higher", "lower"] = Field(
        default="higher", description="Which way is worse; the kernel's metrics: higher."
    )
    min_samples: Annotated[int, Field(ge=1, le=1_000_000_000, strict=True)] = Field(
        default=10,
        description="Connections or requests of the canary, and of the stable pool, in a step; with"
        " fewer there is not enough data. Kernel's metrics only.",
    )
    tolerate: Annotated[int, Field(ge=0, le=1000, strict=True)] = Field(
        default=2,
        description="Looks in a row that may fail to measure; one more is `could not measure`.",
    )
    breaches: Annotated[int, Field(ge=1, le=1000, strict=True)] = Field(
        default=2,
        description="Looks in a row that must be out of bounds to fail. Metrics from outside only: they"
        " have no sample size, so there is no test.",
    )
    observe: Flag = Field(default=False, description="Only look: it neither aborts nor holds up.")

    @model_validator(mode="before")
    @classmethod
    def _name_is_source(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        sources = ("kernel", "prometheus", "command", "webhook")
        name = value.get("name")
        if isinstance(name, str) and not any(value.get(each) is not None for each in sources):
            return {**value, "kernel": name}
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        sources = [self.kernel, self.prometheus, self.command, self.webhook]
        if sum(each is not None for each in sources) != 1:
            raise ValueError("give one source: kernel, prometheus, command or webhook")
        if self.limit is None and self.compare is False:
            raise ValueError("with `compare: false` give a `limit`")
        if self.kernel is not None and self.worse == "lower":
            raise ValueError("`worse: lower` is for metrics from outside")
        unmeant = "min_samples" if self.kernel is None else "breaches"
        # With its default it may come from a document, in which everything is written down.
        if getattr(self, unmeant) != type(self).model_fields[unmeant].default:
            whose = "the kernel's metrics" if self.kernel is None else "metrics from outside"
            raise ValueError(f"`{unmeant}` is for {whose}")
        return self

    @property
    def compares(self) -> bool:
        """Is it compared with the stable pool?"""
        return self.limit is None if self.compare is None else self.compare


class Analysis(Document):
    """All that a canary is judged by."""

    metrics: tuple[Metric, ...] = Field(
        min_length=1, max_length=MAX_METRICS, description="In any order; each has its verdict."
    )
    false_alarms: Annotated[float, Field(ge=1e-6, le=0.2), _FIGURE] = Field(
        default=0.01,
        description="How likely a canary that equals the stable pool may be aborted, over a whole"
        " rollout, with all looks and all of the kernel's metrics.",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [each.name for each in self.metrics]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"metric {name!r} comes twice")
        return self

    @property
    def outside(self) -> tuple[Metric, ...]:
        """Those that have to be asked for."""
        return tuple(each for each in self.metrics if each.kernel is None)


def load(text: str, source: str) -> Analysis:
    """Read an analysis file; `source` is the file's name, for errors. Raises UserError."""
    reader = Marked(source, _HINT)
    plain = reader.plain(text)
    if plain is None:
        raise UserError(f"{source}: the file is empty", hint=_HINT)
    if not isinstance(plain, dict):
        found = shorten(str(plain), 40, placeholder="…")
        raise reader.error(f"an analysis is a mapping with the key 'metrics', not {found!r}", ())
    reader.known(plain, Analysis.model_fields, ())
    metrics = []
    for index, value in enumerate(reader.items(plain, "metrics", ())):
        path = ("metrics", index)
        fields = reader.fields(value, path)
        reader.known(fields, Metric.model_fields, path)
        metrics.append(reader.document(Metric, fields, path, _explain))
    reader.distinct([each.name for each in metrics], "metric", ("metrics",))
    if not 1 <= len(metrics) <= MAX_METRICS:
        raise reader.error(f"metrics: must be 1 to {MAX_METRICS}, not {len(metrics)}", ("metrics",))
    return reader.document(Analysis, {**plain, "metrics": metrics}, (), _explain)


def _explain(error: ErrorDetails, model: type[Document]) -> str:
    """A pydantic error in words: "min_samples: must be 1 or more, not 0"."""
    location, kind, given = error["loc"], error["type"], error["input"]
    words = error["msg"].removeprefix("Value error, ")
    owner = model
    for part in location[:-1]:
        owner = SOURCES.get(str(part), owner)
    if kind == "missing":
        words = "is missing"
    elif kind == "extra_forbidden":
        words = "is not a setting" + close(str(location[-1]), owner.model_fields)
    elif location[:1] == ("kernel",):
        words = f"{given!r} is no metric of the kernel{close(str(given), list(KernelMetric))}"
    elif location[:1] == ("name",):
        words = f"must be 1 to 63 of a-z, 0-9, '_' and '-', not {given!r}"
    elif kind != "value_error":
        words = f"{words[:1].lower()}{words[1:]}, not {given!r}"
    return f"{'.'.join(map(str, location))}: {words}" if location else words


def schema() -> dict[str, Any]:
    """JSON Schema of an analysis file."""
    return Analysis.model_json_schema()
