"""The manual's nginx, as it stands in the chapter `web`, before a page with a password: a real nginx, real TLS.

Skips where nginx is not installed.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ..support.pages import basic, serving
from ..support.sftp import CHEAP_HASH, PASSWORD

CHAPTER = Path(__file__).parent.parent.parent / "server" / "manual" / "web.md"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
NAME = "status.example.com"
pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light")


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for the name, of its own making, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem, secret = folder / "cert.pem", folder / "cert.key"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    secret.write_bytes(private)
    return pem, secret


def nginx_conf(folder: Path, port: int, page: int) -> Path:
    """The manual's lines, with what is another machine's in place of ours: ports and the certificate."""
    pem, secret = certificate(folder)
    block = re.search(r"^```nginx\n(.*?)```$", CHAPTER.read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    text = block[1]
    for manual, here in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"), ("127.0.0.1:9108", f"127.0.0.1:{page}"),
        (f"/etc/ssl/certs/{NAME}.pem", str(pem)), (f"/etc/ssl/private/{NAME}.key", str(secret)),
    ):  # fmt: skip
        assert manual in text
        text = text.replace(manual, here)
    temporary = "".join(
        f"{name}_temp_path {folder};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{text}\n}}\n"
    )
    return conf


async def ask(port: int, trust: Path, *headers: str, host: str = NAME) -> bytes:
    """Ask for the page over TLS, once somebody listens; the whole answer."""
    context = ssl.create_default_context(cafile=str(trust))
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAME)
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
            continue
        writer.write("\r\n".join(("GET / HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", "")).encode())
        answer = await reader.read()
        writer.close()
        return answer


async def test_the_manuals_proxy_serves_the_page_over_tls(tmp_path: Path) -> None:
    """With the password, by its name; without either the answer is the page's own refusal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with serving(tmp_path, password_hash=CHEAP_HASH, hosts=[NAME]) as served:
        conf = nginx_conf(tmp_path, port, served.port)
        process = await asyncio.create_subprocess_exec(
            str(NGINX), "-p", str(tmp_path), "-c", str(conf), stderr=subprocess.PIPE
        )
        try:
            async with asyncio.timeout(60):
                good = await ask(port, tmp_path / "cert.pem", basic(PASSWORD))
                without = await ask(port, tmp_path / "cert.pem")
                borrowed = await ask(port, tmp_path / "cert.pem", basic(PASSWORD), host="evil.example")
        finally:
            process.terminate()
            _, said = await process.communicate()
    assert good.startswith(b"HTTP/1.1 200") and b"No day yet" in good, said
    assert b"Content-Security-Policy: default-src 'none'" in good
    assert without.startswith(b"HTTP/1.1 401") and b"WWW-Authenticate: Basic" in without
    assert borrowed.startswith(b"HTTP/1.1 421")
