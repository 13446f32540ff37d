"""Why a connection ended, and what the journal says about it.

Touches nothing outside: asks the connection, and tells the registry. Promise: what is said is true, since the partner's
engineer will act on it. A cause is named only if the connection shows it, never because a client sent a code: JSch, for
one, calls whatever it does not like a failed key exchange.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import asyncssh
import structlog

from ..pickups import DOCTOR_CLIENT
from .algorithms import find_disagreement, negotiate
from .connection import TooManyRequests
from .limits import Reason
from .proxy_protocol import LINE, SIGNATURE
from .registry import plain
from .users import Verdict

if TYPE_CHECKING:
    from .connection import SshConnection

log = structlog.get_logger()

# The errors that a scanner, a browser or a broken client causes; one that just hangs up causes none.
NOT_SSH = (
    asyncssh.IllegalUserName,
    asyncssh.MACError,
    asyncssh.ProtocolError,
    asyncssh.ProtocolNotSupported,
    asyncssh.ServiceNotAvailable,
    ValueError,  # from asyncssh's parsers, and from cryptography, for bytes that make no sense
)
BALANCER_HINT = (
    "a load balancer sends PROXY protocol, which is read from proxy_protocol_from in [sftp] alone: name it there, or "
    'switch it off for this port (HAProxy: no "send-proxy"; nginx: "proxy_protocol off"; AWS: '
    "proxy_protocol_v2.enabled = false)"
)
HOST_KEY_HINT = (
    "the partner's client may expect another host key, or ask somebody whether to trust this one: have "
    "the partner replace the old one; to compare it with ours: pickup-point keygen"
)
KEY_HINTS = {
    Verdict.UNKNOWN_KEY: "register it, if it is the partner's, in this user's authorized_keys; "
    "then: systemctl reload pickup-point",
    Verdict.UNKNOWN_USER: "no user has this name; what the partner was told: pickup-point status --sheet",
    Verdict.WRONG_ADDRESS: "the key is registered, but this user's allow_from does not have the address",
}
SILENT_HINT = "the partner's client or the network to it hangs: nothing was acknowledged, and no keepalive answered"
NO_CREDENTIALS_HINT = (
    "the partner's client found no key that it may use (ssh ignores one that others can read), or may not ask for a "
    "password (BatchMode)"
)
_OTHERS = {"TLS": (b"\x16\x03",), "HTTP": (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"OPTIONS ", b"CONNECT ")}
OTHERS_HINT = "this port speaks SFTP over SSH; the client is set to FTPS or to HTTP, or meant another port"
MERE_LOOKERS = (DOCTOR_CLIENT, "OpenSSH-keyscan")  # clients that only want to see the host key


@dataclass(slots=True)
class LoginAttempt:
    """What a client has done on one connection to log in.

    ``user`` is '' before it named one; ``tries`` are passwords and signatures by registered keys; ``keys`` are those
    offered that did not let the user in, one of them ``refused_key`` (its SSH blob, and why). ``told``: the journal has
    a line about them.
    """

    user: str = ""
    tries: int = 0
    keys: int = 0
    refused_key: tuple[bytes, Verdict] | None = None
    told: bool = False


def report_end(connection: SshConnection, exc: Exception | None, attempt: LoginAttempt) -> None:
    """Log why a connection ended, if that is worth a line; ``exc`` is asyncssh's reason."""
    registry, address, user, shown = connection.registry, connection.address, connection.user, connection.keys_sent
    if not connection.named:
        return  # a balancer's health check, which may end any way
    if not (user or attempt.tries or attempt.told) and attempt.refused_key is not None:
        _report_keys(connection, attempt, *attempt.refused_key)
    if not user and connection.greeting.startswith((LINE, SIGNATURE)):
        registry.refused(address, Reason.BALANCER, hint=BALANCER_HINT)
    elif disagreement := _disagreement(connection):
        # Whoever ended it, and however: a client that finds nothing in common may say so, hang up or reset.
        registry.refused(address, Reason.KEY_EXCHANGE, user, client=connection.client, **disagreement)
    elif not user and "Login timeout" in str(exc):
        where = "login" if connection.wants_login else "host key" if shown else "key exchange"
        details = {"client": connection.client, "waited_at": where} | (
            {"hint": HOST_KEY_HINT} if where == "host key" else {}
        )
        registry.refused(address, Reason.LOGIN_TIMEOUT, attempt.user, **details)
    elif user and isinstance(exc, asyncssh.ConnectionLost) and "keepalive" in str(exc):
        registry.refused(address, Reason.SILENT, user, client=connection.client, hint=SILENT_HINT)
    elif isinstance(exc, TooManyRequests):
        registry.refused(address, Reason.FLOOD, user)
    elif not user and (isinstance(exc, NOT_SSH) or (isinstance(exc, asyncssh.KeyExchangeFailed) and not shown)):
        spoken = next((name for name, greetings in _OTHERS.items() if connection.greeting.startswith(greetings)), "")
        more = {"speaks": spoken, "hint": OTHERS_HINT} if spoken else {}
        registry.refused(address, Reason.PROTOCOL, client=connection.client, **more)
    elif exc is not None and shown and not connection.wants_login:  # None: we ended it
        if connection.client not in MERE_LOOKERS:
            offers = connection.offers()
            host_key = (offers and negotiate(offers[0].host_keys, offers[1].host_keys)) or "-"
            registry.turned_away(connection, client=connection.client, host_key=host_key, hint=HOST_KEY_HINT)
    elif not (user or attempt.tries or attempt.told or attempt.keys) and attempt.user and not registry.draining:
        details = {"client": connection.client, "hint": NO_CREDENTIALS_HINT}
        registry.refused(address, Reason.NO_CREDENTIALS, attempt.user, **details)
    elif isinstance(exc, asyncssh.DisconnectError | ValueError) and not isinstance(exc, asyncssh.ConnectionLost):
        registry.ended(connection, type(exc).__name__)
    elif exc is None or isinstance(exc, asyncssh.Error | OSError):
        pass  # the client hung up, or we did
    elif registry.may_log("broke-off", address):  # within the budget: a traceback is long
        log.error(f"{connection.label} broke off", error=type(exc).__name__, exc_info=exc)


def _report_keys(connection: SshConnection, attempt: LoginAttempt, key: bytes, why: Verdict) -> None:
    """Log that a client had nothing but keys that do not let the user in; the fingerprint is ssh-keygen's."""
    reason = Reason.ADDRESS if why is Verdict.WRONG_ADDRESS else Reason.KEY
    fingerprint = f"SHA256:{b64encode(sha256(key).digest()).decode().rstrip('=')}"
    details = {"client": connection.client, "keys": attempt.keys, "key": fingerprint, "hint": KEY_HINTS[why]}
    connection.registry.refused(connection.address, reason, attempt.user, **details)


def _disagreement(connection: SshConnection) -> dict[str, str]:
    """Return the details of a key exchange that could not succeed, or nothing."""
    offers = connection.offers() if connection.exchanging else None
    found = find_disagreement(*offers) if offers else None
    if found is None:
        return {}
    theirs, ours = (",".join(plain(name) for name in names[:40]) for names in (found.client, found.server))
    return {"missing": found.what, "client_offers": theirs, "we_offer": ours, "hint": found.hint}
