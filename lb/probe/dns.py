"""DNS: ask a name server for a record, over UDP."""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.rcode

from lb.model.health import DnsCheck
from lb.probe.base import Attempt, Failed, Target
from lb.probe.udp import exchange


async def ask(target: Target, attempt: Attempt) -> str:
    """Raises Failed, OSError."""
    check = target.health.check
    assert isinstance(check, DnsCheck)
    query = dns.message.make_query(check.name, check.type)
    async with exchange(target, attempt, query.to_wire()) as socket:
        while True:
            data = await socket.receive()
            try:
                answer = dns.message.from_wire(data, ignore_trailing=True)
            except dns.exception.DNSException as error:
                raise Failed(f"the answer is not DNS: {error}") from None
            if query.is_response(answer):
                break
            attempt.missing = "no answer to our question"
    rcode = answer.rcode()
    if rcode != dns.rcode.NOERROR:
        raise Failed(f"answered {dns.rcode.to_text(rcode)} for {check.name} {check.type}")
    records = sum(len(each) for each in answer.answer)
    if answer.flags & dns.flags.TC:
        return "answered (truncated)"
    if not records:
        raise Failed(f"no record for {check.name} {check.type}")
    return f"answered with {records} record{'s' if records > 1 else ''}"
