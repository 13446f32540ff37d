"""What is really offered, what ssh-audit thinks of it, and what the service log says when nothing fits."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from structlog.testing import capture_logs

from server.sftp.algorithms import DEFAULT, LEGACY, Offer, find_disagreement, negotiate

from ..support.sftp import PASSWORD, Running, running

if TYPE_CHECKING:
    from asyncio.subprocess import Process

SSH_AUDIT = Path(sys.executable).with_name("ssh-audit")


async def offered(port: int) -> tuple[Offer, list[str], list[str]]:
    """Read the server's KEXINIT from the wire; return the offer, and the two compression lists."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.readline() == b"SSH-2.0-pickup-point\r\n"
    writer.write(b"SSH-2.0-test\r\n")
    length = int.from_bytes(await reader.readexactly(4), "big")
    packet = await reader.readexactly(length)
    writer.close()
    payload = packet[1 : -packet[0]]
    lists, position = [], 17
    while position < len(payload) - 5:
        size = int.from_bytes(payload[position : position + 4], "big")
        lists.append(payload[position + 4 : position + 4 + size].decode().split(","))
        position += 4 + size
    assert lists[2] == lists[3], "the same ciphers in both directions"
    assert lists[4] == lists[5], "the same MACs in both directions"
    offer = Offer.parse(payload)
    assert offer is not None
    return offer, lists[6], lists[7]


async def test_the_default_profile_is_offered_literally(listener: Running) -> None:
    """Key exchanges, host keys, ciphers, MACs and compressions, in order, and no others."""
    offer, *compressions = await offered(listener.port)
    assert [name for name in offer.kex if not name.startswith(("ext-info", "kex-strict"))] == [
        "mlkem768x25519-sha256",
        "curve25519-sha256",
        "curve25519-sha256@libssh.org",
        "diffie-hellman-group16-sha512",
    ]
    assert sorted(offer.host_keys) == ["rsa-sha2-256", "rsa-sha2-512", "ssh-ed25519"]
    assert list(offer.ciphers) == [
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "chacha20-poly1305@openssh.com",
        "aes256-ctr",
        "aes192-ctr",
        "aes128-ctr",
    ]
    assert list(offer.macs) == [
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-512-etm@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-512",
    ]
    assert compressions == [["none"], ["none"]]


async def test_the_legacy_profile_adds_two_names(tmp_path: Path, keys_dir: Path, listener: Running) -> None:
    """legacy_algorithms adds ecdh-sha2-nistp256 and the ECDSA host key, nothing else."""
    plain, *_ = await offered(listener.port)
    async with running(tmp_path / ".", keys_dir, legacy_algorithms=True) as it:
        legacy, *_ = await offered(it.port)
    assert set(legacy.kex) - set(plain.kex) == {"ecdh-sha2-nistp256"}
    assert set(legacy.host_keys) - set(plain.host_keys) == {"ecdsa-sha2-nistp256"}
    assert (legacy.ciphers, legacy.macs) == (plain.ciphers, plain.macs)


async def test_the_signature_list_has_no_duplicates(listener: Running) -> None:
    """Duplicates in server-sig-algs crash libssh2 1.11.1 with an RSA key."""
    async with listener.connect() as connection:
        advertised = connection._server_sig_algs
    assert advertised == {
        b"ssh-ed25519",
        b"rsa-sha2-512",
        b"rsa-sha2-256",
        b"ecdsa-sha2-nistp256",
        b"ecdsa-sha2-nistp384",
        b"ecdsa-sha2-nistp521",
    }
    names = [*DEFAULT.signatures]
    assert len(names) == len(set(names))


@pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields")
@pytest.mark.parametrize("kex", DEFAULT.kex)
async def test_every_key_exchange_works(listener: Running, kex: str) -> None:
    """Each offered key exchange leads to a login."""
    async with listener.connect(kex_algs=[kex]):
        assert listener.logins[-1].kex == kex


@pytest.mark.parametrize("cipher", DEFAULT.ciphers)
@pytest.mark.parametrize("mac", DEFAULT.macs[::2])
async def test_every_cipher_carries_a_file(listener: Running, cipher: str, mac: str) -> None:
    """Each offered cipher and kind of MAC transfers a file whole."""
    async with (
        listener.connect(encryption_algs=[cipher], mac_algs=[mac]) as connection,
        connection.start_sftp_client() as sftp,
    ):
        (name,) = await sftp.listdir("/")
        async with sftp.open(name, "rb") as file:
            assert await file.read() == bytes(range(256)) * 4096
        assert listener.logins[-1].cipher == cipher


@pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields")
@pytest.mark.skipif(not SSH_AUDIT.exists(), reason="ssh-audit is not installed: pip install '.[test]'")
@pytest.mark.parametrize("legacy", [False, True])
async def test_ssh_audit_finds_no_failure(tmp_path: Path, keys_dir: Path, legacy: bool) -> None:
    """No "fail" line in the default profile, and the pace of connections is called safe; with the legacy profile two
    about NIST curves."""
    async with running(tmp_path, keys_dir, legacy_algorithms=legacy) as it:
        process: Process = await asyncio.create_subprocess_exec(
            *(SSH_AUDIT, "--json", "--port", str(it.port), "127.0.0.1"), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
    report = json.loads(output)
    failures = [
        (entry["algorithm"], text)
        for kind in ("kex", "key", "enc", "mac")
        for entry in report[kind]
        for text in entry["notes"].get("fail", [])
    ]
    assert [name for name, _ in failures] == (["ecdh-sha2-nistp256", "ecdsa-sha2-nistp256"] if legacy else [])
    assert "throttling" not in json.dumps(report["additional_notes"])


async def failing_login(port: int, **algorithms: Any) -> Any:
    with capture_logs() as entries, pytest.raises(asyncssh.Error):
        await asyncssh.connect(
            "127.0.0.1",
            port,
            username="triton",
            password=PASSWORD,
            known_hosts=None,
            client_keys=None,
            agent_path=None,
            config=None,
            client_version="JSCH-0.1.55",
            **algorithms,
        )
    (line,) = [entry for entry in entries if entry.get("reason") == "no-common-algorithm"]
    return line


async def test_a_failed_key_exchange_is_diagnosed(listener: Running) -> None:
    """One line: who, what it offered, what we offer, and legacy_algorithms where that would help."""
    line = await failing_login(listener.port, kex_algs=["ecdh-sha2-nistp256"])
    assert line["event"] == "sftp refused 127.0.0.1"
    assert (line["client"], line["missing"]) == ("JSCH-0.1.55", "key exchange")
    assert line["client_offers"].startswith("ecdh-sha2-nistp256")
    assert line["we_offer"].startswith("mlkem768x25519-sha256,curve25519-sha256,")
    assert line["hint"] == "set legacy_algorithms = true in [sftp]"
    line = await failing_login(listener.port, server_host_key_algs=["ecdsa-sha2-nistp256"])
    assert (line["missing"], line["hint"]) == ("host key", "set legacy_algorithms = true in [sftp]")
    line = await failing_login(listener.port, kex_algs=["diffie-hellman-group14-sha1"])
    assert line["hint"] == "the partner must update their SSH client"
    line = await failing_login(listener.port, encryption_algs=["aes128-cbc"])
    assert (line["missing"], line["client_offers"]) == ("cipher", "aes128-cbc")


def test_disagreements_are_found_in_order() -> None:
    """The first list without a common name is named; agreement gives none; markers are no algorithms."""
    ours = Offer(LEGACY.kex, LEGACY.host_keys, LEGACY.ciphers, LEGACY.macs)
    assert find_disagreement(ours, ours, legacy=True) is None
    assert negotiate(("ext-info-c", "a"), ("ext-info-c", "a")) == "a"
    bad_mac = Offer(ours.kex, ours.host_keys, ("aes128-ctr",), ("hmac-md5",))
    found = find_disagreement(bad_mac, ours, legacy=False)
    assert found is not None
    assert found.what == "MAC"
    gcm_only = Offer(ours.kex, ours.host_keys, ("aes128-gcm@openssh.com",), ())
    assert find_disagreement(gcm_only, ours, legacy=False) is None
