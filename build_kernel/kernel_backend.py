"""The build of the package (PEP 517): setuptools', and before it the kernel, `server/convert/kernel.c`, as a library.

The example configuration is copied into the package, too, for `pickup-point manual config`.

Runs a C compiler: the one that ``CC`` names, else the system's; where there is none, zig's, which comes from PyPI for
the build alone and only for platforms of which it has a wheel. Elsewhere, and with ``PICKUP_POINT_KERNEL=none``, the
build succeeds without a kernel, and rows go the exact way.

One library serves every Python: it knows nothing of Python. So a wheel with a kernel is tagged py3-none-PLATFORM.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  # the hooks that stay as they are
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

SOURCE = Path("server/convert/kernel.c")
LIBRARY = SOURCE.with_name("libkernel.so")
# What `pickup-point manual` shows, though it lies at the top of the tree.
SHOWN = {"config.example.toml": "config.example.toml", "CONTRIBUTING.md": "next-engineer.md"}
SWITCH = "PICKUP_POINT_KERNEL"
FLAGS = ("-std=gnu11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden")
ZIG = "ziglang>=0.13"
ZIG_MACHINES = ("x86_64", "aarch64")  # of Linux, for which ziglang has wheels and zig's C library the symbols
GLIBC = "2.17"  # what zig links against: manylinux2014


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _requirements()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _requirements()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    for file, name in SHOWN.items():
        shutil.copyfile(file, Path("server/manual", name))
    tag = build_kernel()
    settings = dict(config_settings or {})
    if tag:
        given = settings.get("--build-option", [])
        settings["--build-option"] = [*([given] if isinstance(given, str) else given), f"--plat-name={tag}"]
    return build_meta.build_wheel(wheel_directory, settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    build_kernel()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_kernel() -> str:
    """Build the library; the platform tag of a wheel with it, or an empty text if there is none."""
    for left in (LIBRARY, Path("build/lib", LIBRARY)):  # by an earlier build
        left.unlink(missing_ok=True)
    if not _is_wanted():
        return ""
    compiler, tag = _system_compiler(), sysconfig.get_platform().replace("-", "_").replace(".", "_")
    if compiler is None and not _is_zigs():
        print("no C compiler: installed without the kernel, conversions go the exact way", file=sys.stderr)
        return ""
    if compiler is None:
        machine, libc = platform.machine(), _libc()
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-{libc}", "-g0"]
        if libc.startswith("gnu"):
            tag = f"manylinux_{GLIBC.replace('.', '_')}_{machine}"
    try:
        subprocess.run([*compiler, *FLAGS, "-o", str(LIBRARY), str(SOURCE)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"{error}\nThe kernel could not be compiled; {SWITCH}=none pip install … goes without."
        ) from error
    return tag


def _is_wanted() -> bool:
    return sys.platform == "linux" and sys.byteorder == "little" and os.environ.get(SWITCH) != "none"


def _system_compiler() -> list[str] | None:
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def _is_zigs() -> bool:
    return platform.machine() in ZIG_MACHINES and sys.maxsize > 1 << 32


def _libc() -> str:
    return f"gnu.{GLIBC}" if platform.libc_ver()[0] == "glibc" else "musl"


def _requirements() -> list[str]:
    return [ZIG] if _is_wanted() and _system_compiler() is None and _is_zigs() else []
