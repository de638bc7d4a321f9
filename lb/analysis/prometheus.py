"""One number of a Prometheus server: its instant query API, `POST /api/v1/query`."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from lb.analysis.context import MAX_ANSWER, Context, NotMeasured, number
from lb.analysis.fetch import post, refused
from lb.model.analysis import Prometheus
from lb.model.evidence import Measurement
from lb.probe.base import excerpt


def ask(source: Prometheus, context: Context, *, compares: bool) -> Measurement:
    """Of the canary, and of the stable pool if it is compared and has traffic. Raises NotMeasured."""
    canary = query(source, context.filled(source.query, canary=True))
    if not compares or context.alone:
        return Measurement(canary=canary)
    theirs = context.filled(source.stable_query or source.query, canary=False)
    return Measurement(canary=canary, stable=query(source, theirs))


def query(source: Prometheus, text: str) -> float:
    """The number that a query gives. Raises NotMeasured."""
    url = f"{source.url.rstrip('/')}/api/v1/query"
    headers = {"Content-Type": "application/x-www-form-urlencoded", **source.headers}
    # Prometheus gives up a query by itself, too: it should not work for who has gone.
    body = urlencode({"query": text, "timeout": f"{round(source.timeout * 1000)}ms"}).encode()
    status, answer = post(url, body, headers, source.timeout)
    if len(answer) > MAX_ANSWER:
        raise NotMeasured(f"{text}: gives too many series; aggregate them, as with sum()")
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        if status // 100 != 2:
            raise refused(url, status, answer)
        raise NotMeasured(f"{url}: the answer is not Prometheus's JSON: it is {excerpt(answer)}")
    if found.get("status") != "success":
        raise NotMeasured(f"{text}: {found.get('errorType', 'error')}: {found.get('error', status)}")
    return _value(text, found.get("data"))


def _value(text: str, data: Any) -> float:
    try:
        kind, result = data["resultType"], data["result"]
        if kind == "vector":
            if not result:
                raise NotMeasured(f"{text}: gives nothing: no such series, or no samples in its range")
            if len(result) > 1:
                raise NotMeasured(f"{text}: gives {len(result)} series; aggregate them, as with sum()")
            result = result[0]["value"]
        elif kind != "scalar":
            raise NotMeasured(f"{text}: gives a {kind}, not a number")
        # "NaN" is what Prometheus makes of 0/0: no traffic.
        return number(float(result[1]))
    except NotMeasured as error:
        raise NotMeasured(str(error) if str(error).startswith(text) else f"{text}: {error}") from None
    except (TypeError, KeyError, IndexError, ValueError):
        raise NotMeasured(f"{text}: the answer is not as Prometheus's: {excerpt(repr(data))}") from None
