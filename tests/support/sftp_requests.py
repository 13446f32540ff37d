"""SFTP requests made of dice: every message code, with whatever flags, lengths, handles and paths. No outside world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.sftp.protocol import Kind

from .sftp import NAME, string

if TYPE_CHECKING:
    import random

EXTENSIONS = [
    b"posix-rename@openssh.com",
    b"statvfs@openssh.com",
    b"fstatvfs@openssh.com",
    b"hardlink@openssh.com",
    b"fsync@openssh.com",
    b"lsetstat@openssh.com",
    b"limits@openssh.com",
    b"expand-path@openssh.com",
    b"users-groups-by-id@openssh.com",
    b"copy-data",
    b"home-directory",
    b"ranges@asyncssh.com",
    b"check-file",
    b"md5-hash",
    b"space-available",
    b"text-seek",
    b"version-select",
    b"vendor-id",
    b"newline",
    b"",
    b"\xff" * 300,
]
PATHS = [
    *(
        b"",
        b"/",
        b".",
        b"./",
        b"/.",
        b"..",
        b"/..",
        b"new",
        b"/new",
        b"/etc/passwd",
        b"//etc/hostname",
        b"\0",
        b"a" * 9999,
    ),
    *(NAME.encode(), b"/" + NAME.encode(), b"./" + NAME.encode(), b"../pickup/" + NAME.encode(), b"\xff\xfe"),
]
CODES = [*range(1, 24), *range(100, 106), 200, 201, 0, 255, 77]


def random_request(dice: random.Random, handles: list[bytes]) -> bytes:
    """One request: mostly well formed, sometimes cut, stretched or made of noise."""
    code = dice.choice(CODES)

    def path() -> bytes:
        return string(dice.choice(PATHS))

    def handle() -> bytes:
        return dice.choice(handles) if handles and dice.random() < 0.7 else string(dice.randbytes(dice.randrange(9)))

    def number(size: int) -> bytes:
        return dice.choice([0, 1, 255, 1 << 16, (1 << 8 * size) - 1, dice.getrandbits(8 * size), 4096]).to_bytes(
            size, "big"
        )

    def attrs() -> bytes:
        flags = dice.choice([0, 1, 4, 8, 0xD, 0x80000000])
        extra = {0: b"", 1: number(8), 4: number(4), 8: number(4) * 2, 0xD: number(8) + number(4) * 3}
        return flags.to_bytes(4, "big") + extra.get(flags, number(4))

    bodies: dict[int, Any] = {
        Kind.OPEN: lambda: path() + dice.choice([b"\0\0\0\1", number(4)]) + attrs(),
        Kind.CLOSE: handle,
        Kind.READ: lambda: handle() + number(8) + number(4),
        Kind.WRITE: lambda: handle() + number(8) + string(dice.randbytes(dice.randrange(200))),
        Kind.RENAME: lambda: path() + path() + dice.choice([b"", number(4)]),
        Kind.SYMLINK: lambda: path() + path(),
        Kind.LINK: lambda: path() + path() + b"\1",
        Kind.SETSTAT: lambda: path() + attrs(),
        Kind.FSETSTAT: lambda: handle() + attrs(),
        Kind.MKDIR: lambda: path() + attrs(),
        Kind.FSTAT: handle,
        Kind.READDIR: handle,
        Kind.BLOCK: lambda: handle() + number(8) * 2 + number(4),
        Kind.UNBLOCK: lambda: handle() + number(8) * 2,
        Kind.EXTENDED: lambda: string(dice.choice(EXTENSIONS)) + dice.choice([path() + path(), handle(), b""]),
    }
    body: bytes = bodies.get(code, path)()
    shape = dice.random()
    if shape < 0.05:
        body = body[: dice.randrange(len(body) + 1)]
    elif shape < 0.1:
        body += dice.randbytes(dice.randrange(40))
    elif shape < 0.15:
        body = dice.randbytes(dice.randrange(64))
    return bytes([code]) + dice.randbytes(4) + body
