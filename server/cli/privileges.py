"""The installation that a command finds: its configuration file, the owner of its data folder, its folder of keys.

Touches the configuration file, the data folder's owner and the identity of this process. Promise: a command that root
types leaves nothing behind that the service cannot open.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..disk import translate_os_errors
from ..errors import ConfigError, Problem
from ..paths import SEARCHED, file_problem, open_to_read, status_of
from ..rights import keep_read_right, keep_rights_of_root, take_read_right

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..settings import Config


def config_path(given: Path | None) -> Path:
    """Return the configuration file that a command reads.

    Raises:
        ConfigError: there is none.
    """
    found = find_config(given)
    if found is None:
        wrong = f"there is no {SEARCHED[0]} here and no {SEARCHED[1]}"
        cure = "pickup-point init; or, to try it out: pickup-point demo"
        for path in SEARCHED:
            if (closed := file_problem(path)) is not None and closed[1]:
                wrong, cure = f"is {path}: {closed[0]}", f"{closed[1]}; or become a user who may read it, with sudo"
        raise ConfigError("the configuration", [Problem("--config", wrong, cure)])
    return found


def become_owner(config: Config) -> None:
    """If this is root, become the owner of data_dir, or of the folder it will be created in. There is no way back.

    The privilege to read stays: systemd keeps a DynamicUser's folder below /var/lib/private, which only root may
    enter, and the keys may be root's alone. Everything written belongs to the owner. What somebody else may have put
    there, above all an export, is read without that privilege (`rights`).

    Raises:
        DataFolderError: the owner cannot be determined.
    """
    if os.geteuid() == 0:
        _become(*_owner(config))


def become_owner_of(folder: Path) -> None:
    """If this is root, become the owner of a folder, as `become_owner` does; call it before touching anything there.

    Raises:
        OSError: the owner cannot be determined.
    """
    if os.geteuid() == 0:
        owner = _first_there(folder)
        _become(owner.st_uid, owner.st_gid, sorted(_groups_of(owner)))


def _become(uid: int, gid: int, groups: list[int]) -> None:
    if uid != 0:
        keep_rights_of_root()
        # The groups go first: only root may change them.
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
        keep_read_right()


@contextlib.contextmanager
def as_owner(config: Config) -> Iterator[None]:
    """If this is root, run the block as the owner, as `become_owner` does; be root again afterwards.

    Raises:
        DataFolderError: the owner cannot be determined.
    """
    uid, gid, groups = _owner(config) if os.geteuid() == 0 else (0, 0, [])
    if uid == 0:
        yield
        return
    own_groups, own_group = os.getgroups(), os.getegid()
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        take_read_right()
        yield
    finally:
        os.seteuid(0)
        os.setegid(own_group)
        os.setgroups(own_groups)


def _owner(config: Config) -> tuple[int, int, list[int]]:
    """Return (user, group, supplementary groups) that the service runs as."""
    with translate_os_errors(config.data_dir):
        owner = _first_there(config.data_dir)
    groups = _groups_of(owner)
    # The unit's SupplementaryGroups= cannot be looked up: it is the group by which the configuration can be read.
    with contextlib.suppress(OSError):
        file = config.path.stat()
        if file.st_mode & 0o044 == 0o040 and file.st_gid != 0:
            groups.add(file.st_gid)
    return owner.st_uid, owner.st_gid, sorted(groups)


def _first_there(folder: Path) -> os.stat_result:
    """Return the status of a folder, or of the nearest one above it that exists."""
    place = folder.absolute()
    while True:
        try:
            return status_of(place)
        except FileNotFoundError:
            place = place.parent  # the last one is /, which exists


def _groups_of(owner: os.stat_result) -> set[int]:
    groups = set[int]()
    with contextlib.suppress(KeyError):  # a DynamicUser that is not running has no name
        import pwd  # only here: a plain convert needs none of it

        groups.update(os.getgrouplist(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid))
    return groups


def find_aws_key(config: Config) -> None:
    """Let AWS's credential chain find the static key ``keys/aws``, as the systemd unit does for the service."""
    path = config.keys_dir / "aws"
    if "AWS_SHARED_CREDENTIALS_FILE" not in os.environ:
        with contextlib.suppress(OSError):
            open_to_read(path).close()
            os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(path.absolute())


class KeysPlace(NamedTuple):
    """Where the keys and the ledger are, the ``address`` that clients use, and whether ``legacy`` keys are offered."""

    keys_dir: Path = Path("keys")
    data_dir: Path = Path("data")
    address: str = ""
    legacy: bool = False


def find_keys(path: Path) -> KeysPlace:
    """Return what a configuration says about the keys, even if it cannot be loaded before they exist.

    Raises:
        ConfigError: it exists but cannot be read, or keys_dir or data_dir is not a path.
    """
    import tomllib  # only here: a plain convert needs none of it

    from ..config import read_config
    from ..settings import path_in

    raw: dict[str, Any] = {}
    if os.path.lexists(path):
        with contextlib.suppress(ValueError, RecursionError):
            raw = tomllib.loads(read_config(path).decode())
    sftp = found if isinstance(found := raw.get("sftp"), dict) else {}
    folders = []
    for key in ("keys_dir", "data_dir"):
        default = key.removesuffix("_dir")
        text = raw.get(key, default)
        try:
            folders.append(path_in(path.absolute().parent, text if isinstance(text, str) else default))
        except ValueError as error:
            what, _, cure = str(error).rpartition("; ")
            raise ConfigError(str(path), [Problem(key, f"is {what}", cure)]) from error
    address = sftp.get("address", "")
    legacy = sftp.get("legacy_algorithms") is True
    return KeysPlace(folders[0], folders[1], address if isinstance(address, str) else "", legacy)


def find_config(given: Path | None) -> Path | None:
    """Return the configuration file to read: the given one, else the first of `SEARCHED` that exists, else None."""
    return given if given is not None else next((path for path in SEARCHED if file_problem(path) is None), None)
