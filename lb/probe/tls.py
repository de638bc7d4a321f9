"""TLS for checks: contexts, and what is wrong with a certificate, in words."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from datetime import UTC, datetime
from functools import lru_cache

from lb.model.health import GrpcCheck, HttpsCheck
from lb.probe.base import Failed, Target

# X509_V_ERR_… of OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64

# Validity ::= SEQUENCE { notBefore Time, notAfter Time } with UTCTime or GeneralizedTime (RFC 5280,
# 4.1.2.5, which fixes their forms). The ssl module shows no certificate that it doesn't trust.
_TIME = rb"(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)"
_VALIDITY = re.compile(rb"\x30[\x1e\x20\x22]" + _TIME + _TIME)


def context_for(check: HttpsCheck | GrpcCheck) -> ssl.SSLContext:
    """What to connect with. Raises Failed if the file of certificates is of no use."""
    alpn = "h2" if isinstance(check, GrpcCheck) else "http/1.1"
    if not check.verify:
        return _context(False, None, 0, alpn)
    try:
        # A new file is read when it comes.
        changed = os.stat(check.ca_file).st_mtime_ns if check.ca_file else 0
        return _context(True, check.ca_file, changed, alpn)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Failed(f"ca_file {check.ca_file} on this node: {reason}") from None


@lru_cache(maxsize=64)
def _context(verify: bool, ca_file: str | None, _changed: int, alpn: str) -> ssl.SSLContext:
    # 16 ms, most of it for reading the system's certificates.
    context = ssl.create_default_context(cafile=ca_file)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    return context


def name_for(check: HttpsCheck | GrpcCheck, target: Target) -> str:
    """The name that is asked for and verified."""
    return check.sni or (check.host or "").partition(":")[0] or target.host


async def explain(error: ssl.SSLError, target: Target, name: str) -> str:
    """Why the handshake failed."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = (error.reason or str(error)).lower().replace("_", " ")
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return f"the answer is not TLS ({reason})"
        return f"TLS handshake failed: {reason}"
    if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
        begins, ends = await _validity(target, name)
        if error.verify_code == _EXPIRED:
            return f"certificate expired{_ago(ends)}"
        return (
            f"certificate is not valid yet{f': from {begins:%Y-%m-%d %H:%M} UTC on' if begins else ''}"
        )
    if error.verify_code in (_OTHER_NAME, _OTHER_ADDRESS):
        return f"certificate is not for {name!r}"
    return f"certificate not trusted: {error.verify_message}"


async def _validity(target: Target, name: str) -> tuple[datetime | None, datetime | None]:
    """From when until when the certificate is valid; asked for once more, without verifying."""
    blind = _context(False, None, 0, "http/1.1")
    try:
        _, writer = await asyncio.open_connection(
            target.host, target.port, ssl=blind, server_hostname=name
        )
    except OSError:
        return None, None
    try:
        encoded = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    finally:
        writer.transport.abort()
    return validity(encoded)


def validity(encoded: bytes) -> tuple[datetime | None, datetime | None]:
    """From when until when a DER certificate is valid; None where it can't be found."""
    found = _VALIDITY.search(encoded)
    if not found:
        return None, None
    return _time(found[1], found[2]), _time(found[3], found[4])


def _time(short: bytes | None, long: bytes | None) -> datetime:
    # Two digits of a year: 50 to 99 are 19xx, as strptime reads 69 to 99; nothing is that old.
    text, form = (short, "%y%m%d%H%M%S") if short else (long or b"", "%Y%m%d%H%M%S")
    return datetime.strptime(text.decode(), form).replace(tzinfo=UTC)


def _ago(end: datetime | None) -> str:
    if end is None:
        return ""
    passed = (datetime.now(UTC) - end).total_seconds()
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if passed >= size:
            count = int(passed // size)
            return f" {count} {unit}{'s' if count > 1 else ''} ago"
    return " just now"
