"""What is really offered, what ssh-audit thinks of it, and what the service log says when nothing fits."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from structlog.testing import capture_logs

from server.sftp.algorithms import CHACHA20, DEFAULT, LEGACY, Offer, Profile, ciphers_for, find_disagreement

from ..support.sftp import Running, running

if TYPE_CHECKING:
    from asyncio.subprocess import Process

UPDATE = "the partner must update their SSH client"
SSH_AUDIT = Path(sys.executable).with_name("ssh-audit")


async def offered(port: int, client: str = "test") -> Offer:
    """Read the server's KEXINIT from the wire, as this client; both directions have the same lists."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.readline() == b"SSH-2.0-pickup-point\r\n"
    writer.write(f"SSH-2.0-{client}\r\n".encode())
    length = int.from_bytes(await reader.readexactly(4), "big")
    packet = await reader.readexactly(length)
    writer.close()
    payload = packet[1 : -packet[0]]
    offer = Offer.parse(payload)
    assert offer is not None
    assert offer.ciphers_in == offer.ciphers_out
    assert offer.macs_in == offer.macs_out
    return offer


async def test_the_default_profile_is_offered_literally(listener: Running) -> None:
    """Key exchanges, host keys, ciphers, MACs and compressions, in order, and no others."""
    offer = await offered(listener.port)
    assert [name for name in offer.kex if not name.startswith(("ext-info", "kex-strict"))] == [
        "mlkem768x25519-sha256",
        "curve25519-sha256",
        "curve25519-sha256@libssh.org",
        "diffie-hellman-group16-sha512",
    ]
    assert sorted(offer.host_keys) == ["rsa-sha2-256", "rsa-sha2-512", "ssh-ed25519"]
    assert list(offer.ciphers_out) == [
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "aes128-ctr",
        "aes192-ctr",
        "aes256-ctr",
    ]
    assert list(offer.macs_out) == [
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-512-etm@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-512",
    ]
    assert offer.compressions_in == offer.compressions_out == ("none",)


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"legacy_algorithms": True}, {"kex": "ecdh-sha2-nistp256", "host_keys": "ecdsa-sha2-nistp256"}),
        ({"chacha20": True}, {"ciphers_in": CHACHA20, "ciphers_out": CHACHA20}),
    ],
)
async def test_a_setting_adds_what_it_says(
    tmp_path: Path, keys_dir: Path, listener: Running, settings: dict[str, bool], more: dict[str, str]
) -> None:
    """legacy_algorithms adds a key exchange and a host key, chacha20 the slow cipher that clients prefer; no more."""
    plain = await offered(listener.port)
    async with running(tmp_path / ".", keys_dir, **settings) as it:
        offer = await offered(it.port)
    for field in fields(Offer):
        added = set(getattr(offer, field.name)) - set(getattr(plain, field.name))
        assert added == ({more[field.name]} if field.name in more else set()), field.name


@pytest.mark.parametrize(
    ("client", "fewer"),
    [
        ("PuTTY_Release_0.77", False),
        ("PuTTY_Release_0.78", True),
        ("PuTTY_Release_0.83", True),
        ("PuTTY_Release_1.0", True),
        ("PuTTY_Release_0.8", False),
        ("OpenSSH_9.2p1 PuTTY_Release_0.78", False),
        ("", False),
    ],
)
def test_who_has_the_faster_cipher_is_offered_no_slower_one(client: str, fewer: bool) -> None:
    """PuTTY chooses AES-CTR where that is offered; older versions have nothing else. ChaCha20 has to be allowed."""
    assert ciphers_for(client, DEFAULT.ciphers) == (DEFAULT.ciphers[:2] if fewer else DEFAULT.ciphers)
    slow = Profile.of(chacha20=True).ciphers
    assert ciphers_for(client, slow) == slow


async def test_the_offer_depends_on_the_client(listener: Running) -> None:
    """Over the wire, and in every key exchange of the connection; for the next client it is whole again."""
    everything = (await offered(listener.port)).ciphers_out
    assert (await offered(listener.port, "PuTTY_Release_0.78")).ciphers_out == everything[:2]
    slow = {"client_version": "PuTTY_Release_0.78", "encryption_algs": ["aes256-ctr", "aes256-gcm@openssh.com"]}
    async with listener.connect(**slow, rekey_bytes=65_536) as connection, connection.start_sftp_client() as sftp:
        (name,) = await sftp.listdir("/")
        async with sftp.open(name, "rb") as file:
            assert len(await file.read()) > 0
        assert listener.logins[-1].cipher == "aes256-gcm@openssh.com"
    assert (await offered(listener.port)).ciphers_out == everything


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


@pytest.mark.parametrize("cipher", Profile.of(chacha20=True).ciphers)
@pytest.mark.parametrize("mac", DEFAULT.macs[::2])
async def test_every_cipher_carries_a_file(any_cipher: Running, cipher: str, mac: str) -> None:
    """Each cipher that can be offered and kind of MAC transfers a file whole."""
    async with (
        any_cipher.connect(encryption_algs=[cipher], mac_algs=[mac]) as connection,
        connection.start_sftp_client() as sftp,
    ):
        (name,) = await sftp.listdir("/")
        async with sftp.open(name, "rb") as file:
            assert await file.read() == bytes(range(256)) * 4096
        assert any_cipher.logins[-1].cipher == cipher


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


async def failing_login(listener: Running, **algorithms: Any) -> Any:
    with capture_logs() as entries:
        with pytest.raises(asyncssh.Error):
            await listener.connect(client_version="JSCH-0.1.55", **algorithms)
        await listener.left_alone()
    (line,) = [entry for entry in entries if entry.get("reason") == "no-common-algorithm"]
    return line


@pytest.mark.parametrize(
    ("offer", "missing", "hint"),
    [
        ({"kex_algs": ["ecdh-sha2-nistp256"]}, "key exchange", "set legacy_algorithms = true in [sftp]"),
        ({"server_host_key_algs": ["ecdsa-sha2-nistp256"]}, "host key", "set legacy_algorithms = true in [sftp]"),
        ({"kex_algs": ["diffie-hellman-group14-sha1"]}, "key exchange", UPDATE),
        ({"encryption_algs": ["aes128-cbc"]}, "cipher", UPDATE),
        ({"encryption_algs": [CHACHA20]}, "cipher", "set chacha20 = true in [sftp]"),
        ({"compression_algs": ["zlib@openssh.com"]}, "compression", UPDATE),
    ],
)
async def test_a_failed_key_exchange_is_diagnosed(
    listener: Running, offer: dict[str, list[str]], missing: str, hint: str
) -> None:
    """One line: who, what it offered, what we offer, and the setting that would help."""
    line = await failing_login(listener, **offer)
    assert line["event"] == "sftp refused 127.0.0.1"
    assert (line["client"], line["missing"], line["hint"]) == ("JSCH-0.1.55", missing, hint)
    ((theirs,),) = offer.values()
    assert line["client_offers"].split(",")[0] == theirs
    assert theirs not in line["we_offer"].split(",")


OURS = DEFAULT.offer


@pytest.mark.parametrize(
    ("client", "server", "what", "hint"),
    [
        (OURS, OURS, None, ""),
        (replace(OURS, ciphers_out=("aes128-ctr",), macs_out=("hmac-md5",)), OURS, "MAC", UPDATE),
        (replace(OURS, ciphers_in=("aes128-ctr",), macs_in=("hmac-md5",)), OURS, "MAC", UPDATE),
        (replace(OURS, ciphers_out=("aes128-gcm@openssh.com",), macs_out=()), OURS, None, ""),
        (replace(OURS, ciphers_in=("aes128-cbc",)), OURS, "cipher", UPDATE),
        (replace(OURS, kex=("ext-info-c", "a")), replace(OURS, kex=("ext-info-c", "b")), "key exchange", UPDATE),
        (replace(OURS, kex=("ecdh-sha2-nistp256",)), LEGACY.offer, None, ""),
        (
            replace(OURS, kex=("ecdh-sha2-nistp256",), ciphers_in=(CHACHA20,), ciphers_out=(CHACHA20,)),
            OURS,
            "key exchange",
            "set legacy_algorithms = true and chacha20 = true in [sftp]",
        ),
        (replace(OURS, ciphers_out=(CHACHA20,)), LEGACY.offer, "cipher", "set chacha20 = true in [sftp]"),
        (replace(OURS, kex=("ecdh-sha2-nistp256",), macs_out=("x",), ciphers_out=("y",)), OURS, "key exchange", UPDATE),
    ],
)
def test_the_first_disagreement_is_named_with_what_would_cure_it(
    client: Offer, server: Offer, what: str | None, hint: str
) -> None:
    """Both directions are compared; markers are not algorithms; a setting is named where it alone would do."""
    found = find_disagreement(client, server)
    assert ("" if found is None else found.hint) == hint
    assert (None if found is None else found.what) == what
