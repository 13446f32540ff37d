"""The paths that an operator typed: no link leads root elsewhere, and nothing but a file is replaced by one."""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import stat
import subprocess
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from server import paths
from server.cli.demo import prepare
from server.cli.privileges import as_owner, find_aws_key, find_keys
from server.cli.samples import write_day
from server.cli.setup import first_line
from server.config import load_config
from server.episodes.catalogue import load_catalogue, load_urls
from server.errors import ConfigError, LedgerError, PickupPointError
from server.paths import (
    MOST_BYTES,
    create,
    destination,
    make_folder,
    open_to_read,
    place_of,
    write_file,
    write_new,
)
from server.sftp.client import read_identity
from server.sftp.keys import make_keys
from server.status.episodes import new_csv
from server.storage.folder import DataFolder
from server.storage.ledger import Ledger

from .support.program import GARBAGE, command, day_before, environment, export_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .support.program import Program, ServiceSite

NOBODY = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to distrust the links of others")


def of_somebody_else(link: Path, target: Path) -> Path:
    """A link that root has not made."""
    link.symlink_to(target)
    os.lchown(link, NOBODY, NOBODY)
    return link


# What is there stays what it is


def test_convert_writes_into_a_fifo_a_device_and_through_a_link(program: Program) -> None:
    """All of them are there afterwards; the bytes are those that a file would have got."""
    folder = program.folder
    (folder / "x.gz").write_bytes(export_of(day_before(1), 5, *GARBAGE))
    assert program.run("convert", "x.gz", "-o", "out.gz", "--rejects", "rejects.gz").returncode == 0
    os.mkfifo(folder / "fifo")
    (folder / "there.gz").write_bytes(b"old")
    (folder / "there.gz").chmod(0o600)
    (folder / "link").symlink_to("there.gz")
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append((folder / "fifo").read_bytes()))
    reader.start()
    done = program.run("convert", "x.gz", "-o", "fifo", "--rejects", "link")
    # Whatever was done to the FIFO: the thread that reads it must end.
    if stat.S_ISFIFO((folder / "fifo").stat().st_mode):
        os.close(os.open(folder / "fifo", os.O_RDWR | os.O_NONBLOCK))
    reader.join(30)
    assert done.returncode == 0, done.stderr
    assert stat.S_ISFIFO((folder / "fifo").stat().st_mode)
    assert heard == [(folder / "out.gz").read_bytes()]
    assert (folder / "link").is_symlink()
    assert (folder / "there.gz").read_bytes() == (folder / "rejects.gz").read_bytes()
    assert stat.S_IMODE((folder / "there.gz").stat().st_mode) == 0o600
    assert {path.name for path in folder.iterdir()} == {"x.gz", "out.gz", "rejects.gz", "fifo", "link", "there.gz"}


def test_convert_writes_into_descriptors_that_it_was_given(program: Program) -> None:
    """What `3>>log` has opened is appended to; one that is closed, or open for reading, is refused in a sentence."""
    (program.folder / "x.gz").write_bytes(export_of(day_before(1), 5))

    def run(redirections: str, output: str = "/dev/fd/3") -> subprocess.CompletedProcess[str]:
        line = shlex.join(command("convert", "x.gz", "-o", output))
        return program.run(argv=["sh", "-c", f"{line} {redirections}"])

    for _ in range(2):
        done = run("3>>log")
        assert done.returncode == 0, done.stderr
    assert len(gzip.decompress((program.folder / "log").read_bytes()).splitlines()) == 12
    for redirections in ("3>&-", "3</dev/null"):
        done = run(redirections)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[0].endswith("/dev/fd/3: it is not open for writing")
    # Without standard streams, no file that is opened becomes one of them.
    assert run("<&- >&- 2>&-", "log").returncode == 0
    assert len(gzip.decompress((program.folder / "log").read_bytes()).splitlines()) == 6


@root
def test_a_device_is_written_into(tmp_path: Path) -> None:
    """``/dev/null`` stays what it is; a disk is refused."""
    os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    try:
        os.close(os.open(tmp_path / "null", os.O_WRONLY))
    except PermissionError:
        pytest.skip("devices do not work in the folder for temporary files here")
    write_file(tmp_path / "null", b"x", 0o600)
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)
    os.mknod(tmp_path / "disk", 0o600 | stat.S_IFBLK, os.makedev(7, 255))
    with pytest.raises(OSError, match="neither a file nor anything to write into"):
        write_file(tmp_path / "disk", b"x", 0o600)


@pytest.mark.parametrize("name", ["-", "out"])
def test_convert_writes_the_log_to_standard_output(name: str, program: Program) -> None:
    """Nothing but the log is there, also by a name such as /dev/stdout; what else is said goes to standard error."""
    (program.folder / "out").symlink_to("/proc/self/fd/1")
    (program.folder / "x.gz").write_bytes(export_of(day_before(1), 5))
    done = subprocess.run(
        command("convert", "x.gz", "-o", name), cwd=program.folder, env=environment(), capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"5 lines of 5 rows" in done.stderr
    assert len(gzip.decompress(done.stdout).splitlines()) == 6
    assert sorted(path.name for path in program.folder.iterdir()) == ["out", "x.gz"]
    assert (program.folder / "out").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fifo", "-o", "out.gz"), "fifo cannot be read: it is not a regular file"),
        ((".", "-o", "out.gz"), ". cannot be read: Is a directory"),
        (("x.gz", "-o", "out.gz", "--rejects", "out.gz"), "the log and the rejected rows cannot both go to out.gz"),
        (("x.gz", "-o", "-", "--json"), "standard output is taken twice: by --json and by -"),
        (("x.gz", "-o", "x.gz/out.gz"), "there is no folder "),
        (("x.gz", "-o", "n" * 300), f"{'n' * 300}: File name too long"),
    ],
)
def test_convert_refuses_what_it_cannot_read_or_write(
    arguments: tuple[str, ...], sentence: str, program: Program
) -> None:
    """One sentence, and a hint of one to three lines; nothing waits for a FIFO that nobody writes to."""
    (program.folder / "x.gz").write_bytes(export_of(day_before(1), 5))
    os.mkfifo(program.folder / "fifo")
    done = program.run("convert", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0].endswith(sentence) or sentence in done.stderr.splitlines()[0]
    assert 2 <= len(done.stderr.splitlines()) <= 4
    assert {path.name for path in program.folder.iterdir()} == {"x.gz", "fifo"}


# Links


def _writes_csv(path: Path) -> None:
    with new_csv(path) as file:
        file.write("x")


def _becomes_its_owner(path: Path) -> None:
    with as_owner(SimpleNamespace(data_dir=path, path=path)):  # type: ignore[arg-type]  # all that it looks at
        pass


READERS: dict[str, Callable[[Path], object]] = {
    "a configuration": load_config,
    "keygen": lambda path: make_keys(find_keys(path).keys_dir),
    "a password": first_line,
    "a private key": read_identity,
    "a list of RSS feeds": load_urls,
    "a catalogue": load_catalogue,
    "a ledger": Ledger.read,
    "a ledger to write": Ledger.open,
}
WAYS: dict[str, Callable[[Path], object]] = READERS | {
    "read": open_to_read,
    "keys": make_keys,
    "a data folder": lambda path: DataFolder(path).prepare(),
    "the owner of a data folder": _becomes_its_owner,
    "a demo": lambda path: prepare(path, 0, datetime.now(UTC)),
    "a day of samples": lambda path: write_day(path, day_before(1), 1),
    "write": lambda path: write_file(path, b"x", 0o600),
    "write a new one": lambda path: write_new(path, b"x"),
    "make a folder": make_folder,
    "fill in": _writes_csv,
}


@root
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("beyond", ["", "secret", "new"])
def test_root_follows_no_link_of_somebody_elses(way: str, beyond: str, tmp_path: Path) -> None:
    """Neither at the end nor on the way; what it leads to stays as it was."""
    (tmp_path / "secret").write_bytes(b"secret")
    before = sorted(tmp_path.iterdir())
    if beyond:
        (tmp_path / "theirs").mkdir()
        path = of_somebody_else(tmp_path / "theirs" / "link", tmp_path) / beyond
    else:
        (tmp_path / "theirs").mkdir()
        path = of_somebody_else(tmp_path / "theirs" / "link", tmp_path / "secret")

    def go() -> None:
        if _told(WAYS[way], path) is False:
            raise FileExistsError("already exists")

    with pytest.raises((OSError, PickupPointError), match=r"root does not follow|Not a directory|already exists"):
        go()
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "theirs"])


@root
def test_whoever_has_put_root_aside_and_reads_everything_follows_no_such_link_either(tmp_path: Path) -> None:
    """Commands that root typed read the ledger like this; what the owner may read themselves stays readable."""
    (tmp_path / "private").mkdir(mode=0o700)
    Ledger.open(tmp_path / "private" / "secret").close()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    link = of_somebody_else(theirs / "ledger.sqlite3", tmp_path / "private" / "secret")
    installation = SimpleNamespace(data_dir=theirs, path=theirs)
    with (
        as_owner(installation),  # type: ignore[arg-type]  # all that it looks at
        pytest.raises(LedgerError, match="root does not follow the link"),
    ):
        Ledger.read(link)


def _told(way: Callable[[Path], object], path: Path) -> object:
    """What a way does with a path; of a `ConfigError`, it is the problem."""
    try:
        return way(path)
    except ConfigError as error:
        raise PickupPointError(str(error.problems[0])) from error


@pytest.mark.parametrize("way", READERS)
def test_what_is_no_file_or_endless_is_refused_and_not_waited_for(way: str, tmp_path: Path) -> None:
    """A FIFO, whether somebody writes to it or not, a device, and a file that no memory would hold."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PickupPointError, match="not a regular file"):
        _told(READERS[way], tmp_path / "fifo")
    with pytest.raises(PickupPointError, match="not a regular file"):
        _told(READERS[way], Path("/dev/zero"))
    (tmp_path / "endless").touch()
    os.truncate(tmp_path / "endless", 64 * MOST_BYTES + 1)
    with pytest.raises(PickupPointError, match=r"larger than \d+ KiB|not a database"):
        _told(READERS[way], tmp_path / "endless")


def test_a_key_for_the_bucket_that_is_no_file_is_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK would wait for a FIFO."""
    monkeypatch.delenv("AWS_SHARED_CREDENTIALS_FILE", raising=False)
    os.mkfifo(tmp_path / "aws")
    find_aws_key(SimpleNamespace(keys_dir=tmp_path))  # type: ignore[arg-type]  # all that it looks at
    assert "AWS_SHARED_CREDENTIALS_FILE" not in os.environ


@root
def test_what_root_writes_belongs_to_the_owner_of_the_folder_and_is_private(tmp_path: Path) -> None:
    """Whoever owns the folder can read it; nobody else can, whatever the umask."""
    os.chown(tmp_path, NOBODY, NOBODY)
    write_file(tmp_path / "a", b"x", 0o600)
    write_new(tmp_path / "b", b"x", 0o640)
    make_folder(tmp_path / "c" / "d")
    found = {path.name: path.stat() for path in tmp_path.rglob("*")}
    assert {name: (at.st_uid, at.st_gid, stat.S_IMODE(at.st_mode)) for name, at in found.items()} == {
        "a": (NOBODY, NOBODY, 0o600),
        "b": (NOBODY, NOBODY, 0o640),
        "c": (NOBODY, NOBODY, 0o700),
        "d": (NOBODY, NOBODY, 0o700),
    }


def test_folders_may_be_asked_for_however_deep(tmp_path: Path) -> None:
    """Deeper than Python's stack: the error is the system's."""
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_folder(tmp_path / "file" / ("a/" * 2000))


def test_links_of_ones_own_lead_where_they_say(tmp_path: Path) -> None:
    """Relative, absolute, upwards, one behind another; a circle ends in an error."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to(tmp_path / "b" / ".." / "b")
    (tmp_path / "a" / "file").symlink_to("../c/real")
    write_file(tmp_path / "c" / "file", b"x", 0o600)
    assert (tmp_path / "a" / "real").read_bytes() == b"x"
    with open_to_read(tmp_path / "b" / "file") as file:
        assert file.read() == b"x"
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="symbolic links"), place_of(tmp_path / "round" / "x"):
        pass


@root
@pytest.mark.parametrize("way", [open_to_read, lambda path: write_file(path, b"x", 0o600)], ids=["read", "write"])
def test_a_link_that_comes_after_the_look_is_not_followed(
    way: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns the folder can be quick: not even a device behind such a link is believed."""
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"x")
    looked = paths.place_of

    @contextmanager
    def and_replaced(path: Path, *, follow: bool = True) -> Iterator[tuple[int, str]]:
        with looked(path, follow=follow) as found:
            if path == theirs:
                theirs.unlink()
                of_somebody_else(theirs, Path("/dev/null") if way is not open_to_read else tmp_path / "secret")
            yield found
            if path == theirs:
                theirs.unlink()
                theirs.write_bytes(b"x")

    (tmp_path / "secret").write_bytes(b"secret")
    monkeypatch.setattr(paths, "place_of", and_replaced)
    with pytest.raises(OSError, match=r"symbolic links|neither a file nor anything to write into"):
        way(theirs)


@pytest.mark.parametrize("name", [Path.symlink_to, Path.hardlink_to])
def test_what_takes_the_place_of_a_fifo_meanwhile_is_not_written_into(
    name: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """A conversion may take long."""
    (tmp_path / "secret").write_bytes(b"secret")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with destination(fifo) as wanted:
        descriptor = create(wanted.folder, "part", 0o600)
        os.write(descriptor, b"x")
        os.close(descriptor)
        fifo.unlink()
        name(fifo, tmp_path / "secret")
        with pytest.raises(OSError, match=r"symbolic links|neither a file nor anything to write into"):
            wanted.deliver("part")
    assert (tmp_path / "secret").read_bytes() == b"secret"


# The commands that root types


@root
def test_a_demo_in_somebody_elses_folder_is_theirs_and_reads_and_writes_nothing_of_roots(
    program: Program, keys_dir: Path
) -> None:
    """Neither what their links lead to, nor through one on the way; what it makes there is not root's either."""
    with TemporaryDirectory(prefix="pickup-point-test-") as temporary:  # tmp_path is for its owner alone
        folder = Path(temporary)
        folder.chmod(0o755)
        (folder / "rootonly").mkdir(mode=0o700)
        (folder / "rootonly" / "secret").write_text("secret")
        theirs = folder / "theirs" / "demo"
        shutil.copytree(keys_dir, theirs / "keys")
        of_somebody_else(theirs / "exports", folder / "rootonly")
        of_somebody_else(theirs / "password.txt", folder / "rootonly" / "secret")
        for path in (theirs.parent, theirs, theirs / "keys", *(theirs / "keys").iterdir()):
            os.chown(path, NOBODY, NOBODY)

        def refused(directory: Path) -> str:
            done = program.run("demo", "--directory", directory, "--port", "0")
            assert done.returncode == 1
            assert sorted(path.name for path in (folder / "rootonly").iterdir()) == ["secret"]
            return done.stderr.splitlines()[0].removeprefix(f"pickup-point: cannot create the demo in {directory}: ")

        assert refused(theirs) == f"{theirs / 'password.txt'}: Permission denied"
        (theirs / "password.txt").unlink()
        assert refused(theirs) == f"{theirs / 'exports'}: Permission denied"
        assert (theirs / "config.toml").exists()
        assert {path.lstat().st_uid for path in theirs.rglob("*")} == {NOBODY}
        assert "root does not follow the link of user 65534 on the way" in refused(theirs / "exports" / "x")


@root
def test_a_handover_as_root_goes_through_no_link_and_shows_the_sample_to_nobody(service_site: ServiceSite) -> None:
    """A file of root's is not overwritten, and listeners' data is closed to others from the first moment."""
    service_site.put(day_before(1), export_of(day_before(1)))
    secret = service_site.folder / "secret"
    secret.write_text("secret")
    theirs = service_site.folder / "theirs"
    theirs.mkdir()
    link = of_somebody_else(theirs / "known_hosts", secret)
    os.chown(theirs, NOBODY, NOBODY)
    done = service_site.run("handover", "--output", str(theirs))
    assert done.returncode == 1
    assert f"cannot write {link}: root does not follow the link of user {NOBODY} on the way" in done.stderr
    assert secret.read_text() == "secret"
    link.unlink()
    assert service_site.run("handover", "--output", str(theirs)).returncode == 0
    assert len(list(theirs.iterdir())) == 4
    for path in theirs.iterdir():
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (NOBODY, 0o600), path


@root
def test_convert_as_root_neither_reads_nor_writes_through_a_link_of_somebody_elses(program: Program) -> None:
    """The export, the log and the rejected rows."""
    (program.folder / "x.gz").write_bytes(export_of(day_before(1), 5, *GARBAGE))
    (program.folder / "secret").write_bytes(b"secret")
    of_somebody_else(program.folder / "to-x", program.folder / "x.gz")
    of_somebody_else(program.folder / "to-secret", program.folder / "secret")
    for arguments in (("to-x", "-o", "o"), ("x.gz", "-o", "to-secret"), ("x.gz", "-o", "o", "--rejects", "to-secret")):
        done = program.run("convert", *arguments)
        assert done.returncode == 1
        assert "root does not follow the link" in done.stderr
    assert (program.folder / "secret").read_bytes() == b"secret"
    assert {path.name for path in program.folder.iterdir()} == {"x.gz", "secret", "to-x", "to-secret"}
