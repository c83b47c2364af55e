"""Files and folders that hold the old content or the new, never half of one; and locks on them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qtarget.errors import QTargetError


def cache_dir() -> Path:
    """$QTARGET_CACHE, or the platform's user cache folder for qtarget."""
    from platformdirs import user_cache_path  # only where the variable is unset

    chosen = os.environ.get("QTARGET_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("qtarget")


def file_facts(file: Path) -> tuple[int, int, int, int]:
    """Size, times and inode: one of them is another one where a file was written or replaced, as nobody sets ctime."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


@contextmanager
def replacing(path: Path, scratch: Path | None = None, *, durable: bool = False) -> Iterator[Path]:
    """Yields where to write a file or a folder, which becomes `path` at the end. Nothing is left of what fails.

    scratch: where to write, on the same disk; by default a name beside `path` that no other process has.
    durable: it becomes `path` only once it is on disk: a machine that stops leaves the old or the new. Otherwise such a
    machine may lose the newest.
    """
    scratch = scratch or path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")  # see replaced_name
    if scratch.is_dir():  # a killed process has left it
        shutil.rmtree(scratch)
    try:
        yield scratch
        if durable:
            for part in (*(scratch.iterdir() if scratch.is_dir() else ()), scratch):
                settle(part)
        os.replace(scratch, path)
    except BaseException:
        remove(scratch)  # on a full disk it would be in the way
        raise


def replaced_name(scratch: str) -> str | None:
    """What a file was to be called that `replacing` wrote on this machine under the name `scratch`; else None."""
    match = re.fullmatch(rf"\.(.+)\.{re.escape(socket.gethostname())}\.[0-9]+", scratch)
    return match[1] if match else None


def write_atomically(path: Path, text: str) -> None:
    """For a text that is written often."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_of(part: Path) -> Iterator[Path]:
    """The files and links in a folder; or the file or link that it is. What goes meanwhile is passed by."""
    if part.is_symlink() or not part.is_dir():
        yield part
        return
    for folder, below, names in os.walk(part):
        yield from (Path(folder, name) for name in names)
        yield from (path for path in (Path(folder, name) for name in below) if path.is_symlink())


def files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files of a folder of data, also of folders that links in it lead to. above: folders that it is reached by,
    into which no link leads back.
    """
    real = folder.resolve()
    if real in above:
        return
    _, below, names = next(os.walk(folder), ("", (), ()))
    yield from (path for path in (folder / name for name in names) if path.is_file())
    for name in below:
        yield from files_below(folder / name, (*above, real))


def local_files(path: Path) -> list[Path]:
    """The file, or those of the folder and of folders that links in it lead to, in order; of a missing one none."""
    return sorted(files_below(path)) if path.is_dir() else [path] * path.is_file()


def remove(path: Path) -> None:
    """Take a file or a folder away, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(
    path: Path, busy: str = "", *, wait: float = -1, say: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Hold the lock file `path`, for this process alone.

    wait: seconds to wait for another process that holds it; −1: without end.
    busy: the message when they are over. It is raised as a QTargetError. Where `say` is given, it is passed the message
    instead, and the wait goes on without end.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        if say is None:
            raise QTargetError(busy) from error
        say(busy)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` where no other process does; yields whether it is held."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def lock_shared(path: Path, owner: object) -> None:
    """Hold the lock file `path` as long as `owner` lives, together with all others that do: `locked` waits for them.

    It waits for a process that holds the file for itself. Nothing is held where that can't be: where the file may not
    be opened, and on systems and file systems without flock(2), such as Windows.
    """
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except (ImportError, OSError):
        return
    weakref.finalize(owner, os.close, descriptor)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
