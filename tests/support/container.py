"""A Debian 12 with a systemd of its own, booted in a container without network, in about a second.

``python -m tests.support.container`` prepares what it needs, once, in a folder outside of the project (about 1.3 GB,
three minutes, as root): the tree of a minimal Debian, the wheels that constraints.txt pins, and a tree in which these
are installed, by pip's lines of the README.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parent.parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "pickup-point-tests"
TREE = CACHE / "bookworm"
WHEELS = CACHE / f"wheels-{hashlib.sha256(CONSTRAINTS.read_bytes()).hexdigest()[:12]}"
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,iproute2,procps,openssh-client,ca-certificates,openssl"
PATIENCE = 60.0
_INSIDE = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "TERM": "dumb",
           "SYSTEMD_PAGER": "cat", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/mnt/wheels", "LANG": "C.UTF-8",
           "PIP_DISABLE_PIP_VERSION_CHECK": "1"}  # fmt: skip


def why_not() -> str:
    """Why it cannot be booted here, or an empty text."""
    if os.geteuid() != 0:
        return "needs root, to boot a container"
    for program, package in (("systemd-nspawn", "systemd-container"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            return f"needs {program}: apt-get install {package}"
    if not TREE.is_dir() or not WHEELS.is_dir():
        return "needs a Debian tree and wheels: apt-get install debootstrap && python -m tests.support.container"
    return ""


def prepare() -> None:
    """Make the trees and the wheels, where they are missing."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if not TREE.is_dir():
        part = TREE.with_name("bookworm.part")
        if part.exists():
            shutil.rmtree(part)
        sites = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True, check=True
        ).stdout.split()
        arguments = ["--variant=minbase", f"--include={PACKAGES}", "bookworm", part, *sites[:1]]
        subprocess.run(["debootstrap", *arguments], check=True, stdout=subprocess.DEVNULL)
        part.rename(TREE)
    if not WHEELS.is_dir():
        part = WHEELS.with_name(f"{WHEELS.name}.part")
        chosen = ["--only-binary=:all:", "--python-version=3.11", "--require-hashes", "-r", CONSTRAINTS, "-d", part]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", *chosen], check=True)
        part.rename(WHEELS)
    with tempfile.TemporaryDirectory() as folder:
        installed_tree(clone(Path(folder, "clone")))


def blocks(section: str) -> list[str]:
    """Return the shell blocks of a section of the README, or of a chapter of the manual with this heading."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    chapters = [path.read_text(encoding="utf-8") for path in (ROOT / "server" / "manual").glob("*.md")]
    found = [text for text in chapters if text.startswith(f"# {section}\n")]
    text = found[0] if found else readme.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```sh[^\n]*\n(.*?)```", text, re.DOTALL)


def installed_tree(clone: Path) -> Path:
    """Return the tree of a Debian in which pip's lines of the README were typed in ``clone``, the project.

    The project itself is taken away again. What is left depends on these lines and on constraints.txt alone, so that
    they are typed once for each content of the two; zig's C library, which the kernel is linked against, is kept, too.
    """
    lines = re.findall(
        r"^(?:python3 -m venv|/opt/pickup-point/bin/pip) .*", "".join(blocks("Install for real")), re.MULTILINE
    )
    # Without apt's lists: reading those of all of Debian takes apt-get seconds, and it installs nothing from them.
    typed = ["cp -r /mnt/repo /root/clone", "cd /root/clone", *lines, "cd /", "rm -r /root/clone",
             "/opt/pickup-point/bin/pip uninstall -q -y pickup-point",
             "rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin"]  # fmt: skip
    told = hashlib.sha256("\n".join([*typed, CONSTRAINTS.read_text(encoding="utf-8")]).encode()).hexdigest()
    tree = CACHE / f"installed-{told[:12]}"
    if tree.is_dir():
        return tree
    part = CACHE / f"{tree.name}.{os.getpid()}.part"
    try:
        subprocess.run(["cp", "-a", TREE, part], check=True)
        done = subprocess.run(
            ["systemd-nspawn", "-q", "-D", part, "--as-pid2", "--console=pipe", "--private-network", "--register=no",
             "--keep-unit", "--resolv-conf=off", "--timezone=off", f"--bind-ro={clone}:/mnt/repo",
             f"--bind-ro={WHEELS}:/mnt/wheels", *_typed("\n".join(typed))],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(f"exit {done.returncode}: {lines}\n{done.stdout}\n{done.stderr}")
        with suppress(OSError):  # somebody else was quicker
            part.rename(tree)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return tree


def _typed(script: str) -> list[str]:
    """Return the command that runs a script of bash's as root of a machine types it."""
    words = [f"{name}={value}" for name, value in _INSIDE.items()]
    return ["/usr/bin/env", "-i", *words, "/bin/bash", "-euc", script]


def clone(folder: Path) -> Path:
    """The project's files without what only this checkout has, as a clone would have them."""
    leave = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "data", "demo", "config.toml")
    return Path(shutil.copytree(ROOT, folder, ignore=leave))


class Machine:
    """A booted container; everything that changes in it is gone with it."""

    def __init__(self, folder: Path, mounts: Mapping[str, Path], tree: Path = TREE) -> None:
        self._console = (folder / "console.log").open("wb")
        binds = [f"--bind-ro={path}:{inside}" for inside, path in mounts.items()]
        # Without all capabilities and bpf, IPAddressDeny= would silently not be enforced.
        self._nspawn = subprocess.Popen(
            ["systemd-nspawn", "-q", "-D", tree, "--volatile=overlay", "--console=pipe", "--private-network",
             "--register=no", "--keep-unit", "--capability=all", "--system-call-filter=bpf", *binds, "-b"],
            stdin=subprocess.DEVNULL, stdout=self._console, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )  # fmt: skip
        self._leader = ""
        try:
            self._wait_until_up()
        except BaseException:
            self.down()
            raise

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + PATIENCE
        state = ""
        while state not in ("running", "degraded"):
            if time.monotonic() > deadline or self._nspawn.poll() is not None:
                raise RuntimeError(f"no systemd came up: {Path(self._console.name).read_text()[-2000:]}")
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
            self._leader = children[0] if children else ""
            state = self.run("systemctl is-system-running", check=False).stdout.strip() if self._leader else ""
            time.sleep(0.1)

    def _inside(self, script: str) -> list[str]:
        return ["nsenter", "-t", self._leader, "-a", "--", *_typed(script)]

    def run(self, script: str, *, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a script of bash's inside, as root."""
        arguments = {
            "capture_output": True,
            "text": True,
            "stdin": subprocess.DEVNULL,
            "timeout": 2 * PATIENCE,
        } | options
        done = subprocess.run(self._inside(script), check=False, **arguments)
        if check and done.returncode:
            raise AssertionError(f"exit {done.returncode}: {script}\n{done.stdout}\n{done.stderr}\n{self.journal()}")
        return done

    def start(self, script: str) -> subprocess.Popen[str]:
        """Start a script inside; its output is its standard output."""
        return subprocess.Popen(
            self._inside(script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def put(self, path: str, content: bytes) -> None:
        """Write a file inside."""
        subprocess.run(self._inside(f"cat > {path}"), input=content, check=True, timeout=PATIENCE)

    def journal(self) -> str:
        """What the service has logged, and what systemd says of it."""
        return self.run("journalctl -q --no-pager -o cat -u pickup-point", check=False).stdout

    def show(self, name: str, unit: str = "pickup-point") -> str:
        """A property of a unit."""
        return self.run(f"systemctl show --value -p {name} {unit}").stdout.strip()

    def until(self, script: str, what: str) -> str:
        """Wait until a script succeeds; its output."""
        deadline = time.monotonic() + PATIENCE
        while (done := self.run(script, check=False)).returncode:
            if time.monotonic() > deadline:
                raise AssertionError(f"never: {what}\n{done.stdout}\n{done.stderr}\n{self.journal()}")
            time.sleep(0.2)
        return done.stdout

    def down(self) -> None:
        """End it properly; a killed nspawn would leave its pid 1 behind."""
        if self._leader and self._nspawn.poll() is None:
            self.run("systemctl poweroff --force", check=False)
        try:
            self._nspawn.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            for pid in (self._leader, str(self._nspawn.pid)):
                if pid:
                    os.kill(int(pid), 9)
            self._nspawn.wait()
        self._console.close()


if __name__ == "__main__":
    prepare()
