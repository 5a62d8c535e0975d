"""Files and folders, local or remote (gs://, s3://): written whole or not at all, locked while they are worked on.

Every file that this project writes goes through here. The rules, which tests/data_pipeline/test_storage.py enforces:
readers open read-only, they never lock, clean or write; what is finished is not deleted because something later
fails; a name that is there is complete.

A local file is written beside its place, synchronised to the disk, and renamed. On an object store an object appears
when it is complete, so it is written in place, and of a folder the file that makes it one is written last.
"""

import atexit
import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
from etils import epath

from data_pipeline.errors import BusyError, DataError

PARTIAL = ".partial"
"""How the name of everything that is not complete ends; it begins with a dot."""

LOCK = ".lock"
"""The file in a folder whose lock a writer holds; it stays when the writer is gone, and means nothing then."""

_counter = itertools.count()


def as_path(path: epath.PathLike) -> epath.Path:
    """A path of whatever file system it names: "gs://bucket/x" is never a local folder "gs:"."""
    return epath.Path(os.fspath(path))


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is an address on an object store."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """A local path from the root, symbolic links followed; an address as it is, which epath would make local."""
    return as_path(path) if is_remote(path) else as_path(path).resolve()


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[epath.Path]:
    """A path to write to, which becomes `path` at the end; nothing changes if the body fails."""
    path = as_path(path)
    if is_remote(path):
        yield path
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}-{next(_counter)}{PARTIAL}")
    try:
        yield partial
        _synchronise(partial)
        partial.replace(path)
        _synchronise(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: epath.PathLike, text: str) -> None:
    """A text file in UTF-8: readers see the old or the new one, never half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """A whole file, such as a picture, in the same way."""
    with writing(path) as partial:
        partial.write_bytes(content)


def write_json(path: epath.PathLike, content: Any) -> None:
    """A JSON file, for people too."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_json_lines(path: epath.PathLike, rows: list[Any]) -> None:
    """A file of one JSON value a line."""
    write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """A JSON object from a file; raises DataError, with the file's name, for everything else that may stand there."""
    path = as_path(path)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        pointer = "; it is a Git LFS pointer: run git lfs pull in its repository" if is_lfs_pointer(path) else ""
        raise DataError(f"{path} is damaged: it is not JSON{pointer}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: it holds no JSON object")
    return content


@contextlib.contextmanager
def understood(path: epath.PathLike) -> Iterator[None]:
    """While a file's content is read: where it is not built as it should be, DataError that names the file.

    For Python's own errors (a key that is missing, a text where a number should be); others pass.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        if type(error).__module__ != "builtins":
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is damaged: {type(error).__name__}: {reason}") from None


_POINTER = b"version https://git-lfs.github.com/spec/"


def is_lfs_pointer(path: epath.PathLike) -> bool:
    """Whether a file is what Git leaves of a large one that was not downloaded."""
    try:
        with as_path(path).open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def contents(folder: epath.PathLike) -> list[epath.Path]:
    """What is in a folder, but for its lock and what writers that died have left."""
    names = as_path(folder).iterdir()
    return sorted(
        path for path in names if path.name != LOCK and not (path.name.startswith(".") and path.name.endswith(PARTIAL))
    )


def read_json_lines(path: epath.PathLike) -> list[Any]:
    r"""The objects of a file of one a line; [] if there is no file.

    A last line that was cut short is left out, and so is a damaged one, with a warning: a bad byte in a log is no
    reason to lose what it is about. Texts may hold every other end of a line, so the file is cut at "\n" alone.
    """
    path = as_path(path)
    if not path.exists():
        return []
    *lines, _cut = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            print(f"{path}, line {number}: damaged, left out", file=sys.stderr, flush=True)
    return rows


class LineWriter:
    """Appends JSON lines to a file, for readers to see when `write` returns; a cut last line is removed first.

    On an object store, which cannot append, the file is written anew.
    """

    def __init__(self, path: epath.PathLike):
        self._path = as_path(path)
        self._rows: list[Any] | None = read_json_lines(path) if is_remote(path) else None
        if self._rows is None:
            if self._path.exists() and self._path.read_bytes()[-1:] not in (b"\n", b""):
                write_json_lines(path, read_json_lines(path))
            self._file = open(os.fspath(path), "a", encoding="utf-8", newline="\n")  # noqa: SIM115 - closed in close()

    def write(self, row: Any) -> None:
        """One more line."""
        if self._rows is None:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()
        else:
            self._rows.append(row)
            write_json_lines(self._path, self._rows)

    def close(self) -> None:
        """Synchronises and closes the file."""
        if self._rows is None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> "LineWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_new(folder: epath.PathLike) -> None:
    """Raises DataError if there is something at `folder` already, or its place cannot be written to."""
    folder = as_path(folder)
    if folder.exists():
        raise DataError(f"{folder} exists already; remove it or choose another folder")
    if is_remote(folder):
        return
    parent = folder.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise DataError(f"cannot write to {folder}: {parent} is not a folder that can be written to")


@contextlib.contextmanager
def new_folder(folder: epath.PathLike) -> Iterator[epath.Path]:
    """A folder to fill, which becomes `folder` at the end; raises DataError if there is one already.

    What an earlier attempt left is removed; another process that makes the same folder is an error (BusyError).
    """
    folder = as_path(folder)
    check_new(folder)
    if is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial):
        for content in partial.iterdir():
            if content.name != LOCK:
                remove(content)
        yield partial
        finish_folder(partial, folder)


def finish_folder(partial: epath.Path, folder: epath.Path) -> None:
    """Synchronises everything in `partial`, whose lock the caller holds, and gives it its name."""
    if not is_remote(partial):
        for parent, _, files in os.walk(os.fspath(partial)):
            for name in files:
                _synchronise(as_path(parent) / name)
            _synchronise(as_path(parent))
    (partial / LOCK).unlink(missing_ok=True)
    partial.rename(folder)
    if not is_remote(folder):
        _synchronise(folder.parent)


@contextlib.contextmanager
def locked(folder: epath.PathLike) -> Iterator[None]:
    """Keeps other writers away from a folder, which exists; raises BusyError at once if there is one.

    Half-written files that a killed writer left directly in the folder are removed. Object stores have no locks: there
    it is up to the user to start one writer for each folder.
    """
    folder = as_path(folder)
    if is_remote(folder):
        yield
        return
    lock = filelock.FileLock(os.fspath(folder / LOCK), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BusyError(f"another process is working in {folder}; wait for it or choose another folder") from None
    except FileNotFoundError:  # between our look and our lock, another process finished the folder and renamed it
        raise BusyError(f"another process has just finished {folder}") from None
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror or error}") from None
    try:
        for content in folder.iterdir():
            if content.name.startswith(".") and content.name.endswith(PARTIAL) and not content.is_dir():
                content.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def make_folder(folder: epath.PathLike) -> epath.Path:
    """A folder to work in, created if it is not there; raises DataError if that is impossible."""
    path = as_path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except Exception as error:  # object stores raise errors of their clients, if these are installed at all
        if not is_remote(path) and not isinstance(error, OSError):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"cannot create {path}: {reason}") from None
    if not is_remote(path) and not os.access(path, os.W_OK):
        raise DataError(f"{path} is not writable")
    return path


def remove(path: epath.PathLike) -> None:
    """A file, or a folder with all that is in it."""
    path = as_path(path)
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink(missing_ok=True)


def copy(source: epath.PathLike, target: epath.PathLike) -> None:
    """A file's content, from and to anywhere."""
    with as_path(source).open("rb") as reader, as_path(target).open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def link(source: epath.PathLike, target: epath.PathLike) -> None:
    """Another name for a finished file; a copy where the file system has no links."""
    source, target = as_path(source), as_path(target)
    try:
        if is_remote(source) or is_remote(target):
            raise OSError("object stores have no links")
        os.link(os.fspath(source), os.fspath(target))
    except OSError:
        with writing(target) as partial:
            copy(source, partial)


@contextlib.contextmanager
def read_locally(folder: epath.PathLike) -> Iterator[Path]:
    """A folder's files on the local disk, for libraries that read nothing else; a temporary copy of a remote one."""
    if not is_remote(folder):
        yield Path(os.fspath(folder))
        return
    with tempfile.TemporaryDirectory() as copy:
        for file in as_path(folder).iterdir() if as_path(folder).exists() else ():
            if not file.is_dir():
                (Path(copy) / file.name).write_bytes(file.read_bytes())
        yield Path(copy)


@contextlib.contextmanager
def read_file_locally(path: epath.PathLike) -> Iterator[Path]:
    """The same for one file."""
    if not is_remote(path):
        yield Path(os.fspath(path))
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / as_path(path).name
        copy(path, local)
        yield local


def local_copy(path: epath.PathLike) -> Path:
    """A file on the local disk with this one's content: itself, or a copy that stays while the process runs."""
    if not is_remote(path):
        return Path(os.fspath(path))
    local = _copies() / os.fspath(path).partition("://")[2].replace("/", "--")
    if not local.exists():
        partial = local.with_name(f"{local.name}{PARTIAL}")
        copy(path, partial)
        partial.rename(local)
    return local


@functools.cache
def _copies() -> Path:
    folder = tempfile.mkdtemp(prefix="llamo_jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@contextlib.contextmanager
def write_locally(folder: epath.PathLike) -> Iterator[Path]:
    """A local folder for libraries that write to nothing else; its files are then in `folder`, wherever that is."""
    if not is_remote(folder):
        Path(os.fspath(folder)).mkdir(parents=True, exist_ok=True)
        yield Path(os.fspath(folder))
        return
    with tempfile.TemporaryDirectory() as copy:
        yield Path(copy)
        target = as_path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for file in Path(copy).iterdir():
            (target / file.name).write_bytes(file.read_bytes())


def copy_folder(source: epath.PathLike, target: epath.PathLike) -> None:
    """A folder's files into another one, over what is there."""
    with read_locally(source) as files, write_locally(target) as place:
        shutil.copytree(files, place, dirs_exist_ok=True)


def digest(path: epath.PathLike) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with as_path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synchronise(path: epath.Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk: a rename alone may come before."""
    descriptor = os.open(os.fspath(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
