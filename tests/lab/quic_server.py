"""A QUIC server (aioquic) that writes its ID into its connection IDs, in the form that
draft-ietf-quic-load-balancers gives them: `python quic_server.py NAME ID PORT CERTIFICATE KEY ADDRESS…`.

It answers whatever comes on a stream with its name.
"""

from __future__ import annotations

import asyncio
import os
import sys
from types import SimpleNamespace

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.quic import connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamDataReceived

CID_BYTES = 10
CONFIG = 2


def name_connection_ids_after(server: bytes) -> None:
    """aioquic draws them from os.urandom(), and nothing else of this length."""

    def urandom(size: int) -> bytes:
        if size != CID_BYTES:
            return os.urandom(size)
        # Three bits of configuration, five that say how many bytes follow.
        return bytes([CONFIG << 5 | CID_BYTES - 1]) + server + os.urandom(CID_BYTES - 1 - len(server))

    connection.os = SimpleNamespace(urandom=urandom)


async def main() -> None:
    name, server, port, certificate, key, *addresses = sys.argv[1:]
    name_connection_ids_after(bytes.fromhex(server))

    class Answer(QuicConnectionProtocol):
        def quic_event_received(self, event: QuicEvent) -> None:
            if isinstance(event, StreamDataReceived) and event.end_stream:
                self._quic.send_stream_data(event.stream_id, name.encode(), end_stream=True)
                self.transmit()

    configuration = QuicConfiguration(
        is_client=False, alpn_protocols=["lb"], connection_id_length=CID_BYTES
    )
    configuration.load_cert_chain(certificate, key)
    for address in addresses:
        await serve(address, int(port), configuration=configuration, create_protocol=Answer)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
