"""Certificates for tests, made by the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


class Authority:
    """Signs certificates into one folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl command to make certificates with")
        self.folder = folder
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl(
            "req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.certificate, "-subj", f"/CN={name}"
        )

    def issue(self, file: str, common_name: str, *names: str) -> tuple[Path, Path]:
        """Returns the paths of a certificate and its key; what stood there is replaced."""
        certificate, key = self.folder / f"{file}.pem", self.folder / f"{file}.key"
        request, extensions = self.folder / f"{file}.csr", self.folder / f"{file}.ext"
        extensions.write_text(f"subjectAltName={','.join(names)}\n" if names else "")
        fresh = self.folder / f"{file}.key.new"
        _openssl("req", *_NEW_KEY, "-keyout", fresh, "-out", request, "-subj", f"/CN={common_name}")
        signed = self.folder / f"{file}.pem.new"
        by = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-days", "2")
        _openssl("x509", "-req", "-in", request, *by, "-extfile", extensions, "-out", signed)
        fresh.replace(key)
        signed.replace(certificate)
        return certificate, key


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
