"""Key files: made once, private, loaded whole."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING

import asyncssh
import pytest

from server.errors import ConfigError
from server.settings import UserSettings
from server.sftp.keys import known_hosts_lines, load_credentials, load_ip_hash_key, make_keys

from ..support.sftp import CHEAP_HASH, sftp_settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(keys_dir: Path, tmp_path: Path) -> Path:
    """A private copy of the session's keys."""
    return shutil.copytree(keys_dir, tmp_path / "keys")


def problems(error: pytest.ExceptionInfo[ConfigError]) -> str:
    return " | ".join(f"{problem} -> {problem.cure}" for problem in error.value.problems)


def test_keygen_makes_what_is_missing_and_nothing_else(folder: Path) -> None:
    """A second run changes no byte; a removed key is made anew, private and whole."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [key.made for key in make_keys(folder)] == [False] * 4
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "ssh_host_ed25519_key").unlink()
    made = {key.path.name: key for key in make_keys(folder)}
    assert [name for name, key in made.items() if key.made] == ["ssh_host_ed25519_key"]
    assert {path.name for path in folder.iterdir()} == set(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_the_keys_are_of_the_promised_kinds(folder: Path) -> None:
    """Ed25519, ECDSA P-256, RSA of 3072 bits, and 64 hex digits; fingerprints are those that ssh-keygen prints."""
    made = {key.path.name: key for key in make_keys(folder)}
    rsa = asyncssh.import_private_key((folder / "ssh_host_rsa_key").read_bytes())
    assert rsa.pyca_key.key_size == 3072
    assert [made[name].public.split()[0] for name in made if name != "ip_hash.key"] == [
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
        "ssh-rsa",
    ]
    text = (folder / "ip_hash.key").read_text().strip()
    assert load_ip_hash_key(folder) == bytes.fromhex(text)
    assert len(text) == 64
    if shutil.which("ssh-keygen"):
        for key in made.values():
            if key.fingerprint:
                printed = subprocess.run(["ssh-keygen", "-lf", key.path], capture_output=True, text=True, check=True)
                assert key.fingerprint in printed.stdout


def test_known_hosts_lines_name_the_port_when_it_is_not_22(folder: Path) -> None:
    """The form is OpenSSH's: [host]:port unless the port is 22; IPv6 in brackets."""
    keys = make_keys(folder)
    assert known_hosts_lines(keys, "sftp.example.com:2222")[0].startswith("[sftp.example.com]:2222 ssh-ed25519 AAAA")
    assert known_hosts_lines(keys, "sftp.example.com")[0].startswith("sftp.example.com ssh-ed25519 AAAA")
    assert known_hosts_lines(keys, "sftp.example.com:22")[0].startswith("sftp.example.com ssh-ed25519 AAAA")
    assert known_hosts_lines(keys, "[2001:db8::1]:2222")[0].startswith("[2001:db8::1]:2222 ssh-ed25519 AAAA")
    assert known_hosts_lines(keys, "2001:db8::1")[0].startswith("2001:db8::1 ssh-ed25519 AAAA")


@pytest.mark.parametrize("name", ["ssh_host_ed25519_key", "ssh_host_rsa_key", "ip_hash.key"])
@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_private_file_that_others_can_read_is_refused(folder: Path, name: str, mode: int) -> None:
    """The sentence names the file, and the cure is a command."""
    (folder / name).chmod(mode)
    with pytest.raises(ConfigError) as error:
        load_ip_hash_key(folder) if name == "ip_hash.key" else load_credentials(sftp_settings(), folder)
    assert f"{folder / name}: can be read by others -> chmod 600 {folder / name}" in problems(error)


def test_credentials_of_systemd_come_first_and_their_modes_are_its_business(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key in $CREDENTIALS_DIRECTORY wins, also with mode 0440; what is not there comes from keys_dir."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "ip_hash.key").write_text("ab" * 32)
    (credentials / "ip_hash.key").chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", os.fspath(credentials))
    assert load_ip_hash_key(folder) == b"\xab" * 32
    assert len(load_credentials(sftp_settings(), folder).host_keys) == 2


def test_all_problems_of_all_files_are_reported_at_once(folder: Path, tmp_path: Path) -> None:
    """A missing host key, a wrong kind, a broken authorized_keys line and a costly hash are in one report."""
    (folder / "ssh_host_ed25519_key").unlink()
    (folder / "ssh_host_rsa_key").write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
    public = tmp_path / "triton.pub"
    public.write_text("# partner\nssh-ed25519 AAAAbroken\n")
    users = [
        UserSettings(name="triton", authorized_keys=public),
        UserSettings(name="ops", password_hash=CHEAP_HASH.replace("m=8", "m=9999999")),
    ]
    with pytest.raises(ConfigError) as error:
        load_credentials(sftp_settings(users=users), folder)
    told = problems(error)
    assert "no such file -> make the missing keys: pickup-point keygen" in told
    assert "is a key of type ssh-ed25519, not ssh-rsa" in told
    assert f"line 2 of {public} is not a public key" in told
    assert "too expensive" in told
    assert error.value.exit_code == 2


@pytest.mark.parametrize("part", ["n", "d", "iqmp", "p", "q"])
def test_an_rsa_key_whose_numbers_do_not_fit_is_refused(folder: Path, part: str) -> None:
    """One bit of a number is another: a signature made with it could give the key away."""
    path = folder / "ssh_host_rsa_key"
    begin, *lines, end = path.read_text().splitlines()
    blob = bytearray(b64decode("".join(lines)))
    numbers = asyncssh.import_private_key(path.read_bytes()).pyca_key.private_numbers()
    number = numbers.public_numbers.n if part == "n" else getattr(numbers, part)
    number = number.to_bytes((number.bit_length() + 7) // 8, "big")
    blob[blob.rindex(number) + len(number) // 2] ^= 1
    path.write_text("\n".join([begin, b64encode(blob).decode(), end, ""]))
    with pytest.raises(ConfigError) as error:
        load_credentials(sftp_settings(), folder)
    assert "ssh_host_rsa_key: is not a private key without a passphrase" in problems(error)


def test_a_broken_hash_key_says_to_restore_it(folder: Path) -> None:
    """A new key would change every listener's hash, so the cure is the backup."""
    (folder / "ip_hash.key").write_text("zz" * 32)
    with pytest.raises(ConfigError) as error:
        load_ip_hash_key(folder)
    assert "restore it from the backup" in problems(error)


def test_the_ecdsa_key_is_offered_only_with_legacy_algorithms(folder: Path) -> None:
    """Two host keys by default, three for JSch 0.1.5x."""
    assert len(load_credentials(sftp_settings(), folder).host_keys) == 2
    assert len(load_credentials(sftp_settings(legacy_algorithms=True), folder).host_keys) == 3
