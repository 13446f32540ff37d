"""The systemd units of this installation: a service that owns nothing but its state folder, and its socket.

Touches nothing, but looks at the path of this program, and whether there is an AWS key.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..config import IP_HASH_KEY
from ..sftp.algorithms import HOST_KEY_FILES
from ..systemd import END_SECONDS

STATE_FOLDER = Path("/var/lib/pickup-point")  # StateDirectory= below
_CREDENTIALS = (*HOST_KEY_FILES, IP_HASH_KEY)


def service_unit(config: Path, keys_dir: Path, drain_seconds: int) -> str:
    """Return the service unit of the installation that this program runs from; systemd reads the keys."""
    program = Path(sys.argv[0])
    command = _word(program.absolute()) if program.name == "pickup-point" else f"{_word(sys.executable)} -m server"
    return _SERVICE.format(
        command=command,
        config=_word(config),
        keys="\n".join(f"LoadCredential={name}:{_escaped(keys_dir / name)}" for name in _CREDENTIALS),
        aws=_AWS.format(aws=_escaped(keys_dir / "aws")) if os.access(keys_dir / "aws", os.F_OK) else "",
        stop=drain_seconds + round(END_SECONDS) + 5,  # the service ends itself before that
    )


def _escaped(path: Path | str) -> str:
    """Return a path escaped for systemd."""
    return str(path).replace("%", "%%")  # systemd.unit(5): % begins a specifier


def _word(path: Path | str) -> str:
    """Return a path as one word of a command line, systemd.service(5)."""
    text = _escaped(path).replace("$", "$$")
    return f'"{text}"' if " " in text else text


def socket_unit(port: int) -> str:
    """Return the socket unit: systemd listens, so the service needs no privilege for port 22."""
    return _SOCKET.format(port=port)


_SERVICE = """\
# pickup-point: Megaphone's exports as Triton's podcast logs, over SFTP.
# Made by `pickup-point systemd-unit`; save it as /etc/systemd/system/pickup-point.service
[Unit]
Description=Pickup point for podcast logs (SFTP)
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} serve --config {config}
ExecReload=kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
WatchdogSec=30
KillMode=mixed
TimeoutStopSec={stop}
LimitNOFILE=16384
LimitCORE=0
MemoryHigh=1G
MemoryMax=2G

DynamicUser=yes
# Not the group's name below: systemd refuses a dynamic user if there is a group of that name.
User=pickup-point-serve
SupplementaryGroups=pickup-point
StateDirectory=pickup-point
StateDirectoryMode=0700
ConfigurationDirectory=pickup-point
ConfigurationDirectoryMode=0750
WorkingDirectory=%S/pickup-point
Environment=HOME=%S/pickup-point
{keys}
{aws}
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
PrivateIPC=yes
PrivateUsers=yes
PrivateMounts=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
ProcSubset=pid
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""
_AWS = """\
LoadCredential=aws:{aws}
Environment=AWS_SHARED_CREDENTIALS_FILE=%d/aws
"""
_SOCKET = """\
# Made by `pickup-point systemd-unit --socket`; save it as /etc/systemd/system/pickup-point.socket
[Unit]
Description=Pickup point for podcast logs (SFTP), the port

[Socket]
ListenStream={port}
Backlog=512
NoDelay=yes

[Install]
WantedBy=sockets.target
"""
