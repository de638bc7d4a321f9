"""Certificates for tests: an authority, and what it signs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lb.lab.shell import run


@dataclass(frozen=True)
class Signed:
    cert: Path
    key: Path


class Authority:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.cert, self._key = folder / "ca.pem", folder / "ca.key"
        new = (
            f"-x509 -newkey rsa:2048 -nodes -subj /CN=test -days 2 -keyout {self._key} -out {self.cert}"
        )
        run(["openssl", "req", *new.split()])

    def sign(self, name: str) -> Signed:
        """A certificate of that name, for loopback."""
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        signed = Signed(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        extensions.write_text("subjectAltName=IP:127.0.0.1\n")
        new = f"-newkey rsa:2048 -nodes -subj /CN={name} -keyout {signed.key} -out {request}"
        run(["openssl", "req", *new.split()])
        sign = f"-req -in {request} -out {signed.cert} -days 2 -extfile {extensions}"
        authority = f"-CA {self.cert} -CAkey {self._key} -CAcreateserial"
        run(["openssl", "x509", *sign.split(), *authority.split()])
        return signed
