"""An object store that is a local folder, for all paths gs://… of a process."""

import os

import pytest
from etils.epath import backend, gpath


class Bucket(backend._OsPathBackend):
    """An object store that is a local folder: gs:///... lies below `root`."""

    root = ""

    def _local(self, path) -> str:
        return f"{self.root}/{os.fspath(path).partition('://')[2]}" if "://" in os.fspath(path) else os.fspath(path)

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found) or name in ("root",):
            return found

        def call(*paths, **options):
            return found(*(self._local(p) if isinstance(p, str | os.PathLike) else p for p in paths), **options)

        return call


def install(root: str, patch: pytest.MonkeyPatch | None = None) -> None:
    """From now on, gs://… lies below the folder `root`; patch: what takes it back."""
    patch = patch or pytest.MonkeyPatch()
    store = Bucket()
    store.root = root
    patch.setitem(gpath._PREFIX_TO_BACKEND, "gs", store)
    patch.setattr(
        gpath.PosixGPath, "_backend", property(lambda self: store if "://" in os.fspath(self) else backend.os_backend)
    )
