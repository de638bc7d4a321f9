"""What the kernel saw of a service's flows, as the nodes report it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from lb.model.document import Moment, Report, Total

# lb/core/histogram.py has 200. Its bounds are powers of two, of which a larger number would make a
# very long one.
Bucket = Annotated[int, Field(ge=0, le=255)]


class Vantage(StrEnum):
    """Where packets were seen: on a balancing node, or at the backend's own interface."""

    NODE = "node"
    BACKEND = "backend"


class FlowTotals(Report):
    """Of one backend, since the report's epoch; every figure only rises.

    A connection counts where its SYN was placed. It is `established` when the backend's SYN-ACK is seen,
    `refused` when a RST answers the SYN, `unanswered` when nothing did in time (it may be established
    later all the same). Where answers don't pass the observer, what the client acknowledges stands for
    them (lb/core/sight.py says what that leaves unseen). The histograms are {bucket: how many};
    lb/core/histogram.py says what a bucket is.
    """

    opened: Total = Field(default=0, description="New connections: first SYNs.")
    established: Total = Field(default=0, description="Of those, answered by a SYN-ACK.")
    refused: Total = Field(default=0, description="Of those, answered by a RST.")
    unanswered: Total = Field(default=0, description="Of those, not answered in time.")
    syn_retransmissions: Total = Field(default=0, description="SYNs sent again.")
    resets_by_client: Total = Field(default=0, description="Connections that the client reset.")
    resets_by_server: Total = Field(default=0, description="Connections that the backend reset.")
    retransmits_by_client: Total = Field(
        default=0, description="Data segments sent again to the backend."
    )
    retransmits_by_server: Total = Field(
        default=0, description="Data segments sent again by the backend."
    )
    requests: Total = Field(default=0, description="Times that data to the backend awaited an answer.")
    unserved: Total = Field(default=0, description="Of those, not answered in time, or by a close.")
    http: dict[str, Total] = Field(
        default={}, description="Responses of plain HTTP/1.x by class: 1xx, 2xx, 3xx, 4xx, 5xx."
    )
    handshake: dict[Bucket, Total] = Field(
        default={}, description="Time from the SYN to its SYN-ACK, in buckets of microseconds."
    )
    first_byte: dict[Bucket, Total] = Field(
        default={}, description="Time from a request to the first byte of its answer, in such buckets."
    )


FIGURES = tuple(sorted(FlowTotals.model_fields))


class FlowReport(Report):
    """What one observer saw of one service. Key: /lb/reports/v1/observed/<service>/<node>, under the
    lease of the node; written anew every second or two while the service is observed.

    With another `epoch` the totals began at zero again: they can't be compared with earlier ones.
    """

    service: str
    node: str
    vantage: Vantage
    epoch: str = Field(description="Changes whenever the totals begin anew.")
    at: Moment = Field(description="When the totals were read; Unix time, seconds.")
    backends: dict[str, FlowTotals] = Field(default={}, description="By the backend's name.")
