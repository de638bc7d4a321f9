"""A figure from a URL that the context is posted to."""

from __future__ import annotations

from lb.analysis.context import Context, read_answer
from lb.analysis.fetch import post, refused
from lb.model.analysis import Webhook
from lb.model.evidence import Measurement


def ask(source: Webhook, context: Context, metric: str) -> Measurement:
    """Raises NotMeasured."""
    headers = {"Content-Type": "application/json", **source.headers}
    status, answer = post(source.url, context.document(metric).encode(), headers, source.timeout)
    if status // 100 != 2:
        raise refused(source.url, status, answer)
    return read_answer(answer)
