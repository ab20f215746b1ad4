"""Temporary file for a finished table that is too large for the memory."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack

import pyarrow as pa

from persyn_hf.errors import LedgerError


class Spill:
    """Writes a table to a temporary file, piece by piece; the file is created with the first piece.

    The file is removed when the process that created it ends. A write error is raised only by [`close`], because a
    full disk for temporary files must not stop a run whose answers the ledger can still store.

    Args:
        schema (`pyarrow.Schema`): Schema of the table.
        rows (`int`): Maximum number of rows per record batch.
    """

    def __init__(self, schema: pa.Schema, rows: int) -> None:
        self._schema, self._rows = schema, rows
        self._path = ""
        self._stack = ExitStack()
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._failed: OSError | None = None

    def write(self, pieces: Iterable[pa.Table]) -> None:
        """Adds pieces; does nothing after a failure."""
        if self._failed is not None:
            return
        try:
            self._writer = self._writer or self._opened()
            for piece in pieces:
                self._writer.write_table(piece, max_chunksize=self._rows)
        except OSError as error:
            self._failed = error

    def close(self) -> str:
        """Closes the file and returns its path.

        Raises:
            LedgerError: If the file could not be written.
        """
        try:
            self._stack.close()
            if self._failed is not None:
                raise self._failed
        except OSError as error:
            raise LedgerError(
                f"The finished table cannot be written to {tempfile.gettempdir()}: {error}. Free some space there, or "
                "set TMPDIR, and run again; answers in the ledger are not requested twice."
            ) from error
        return self._path

    def _opened(self) -> pa.RecordBatchStreamWriter:
        folder, owner = tempfile.mkdtemp(prefix="persyn-hf-"), os.getpid()
        atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
        self._path = os.path.join(folder, "generated.arrow")
        file = self._stack.enter_context(pa.OSFile(self._path, "wb"))
        return self._stack.enter_context(pa.ipc.new_stream(file, self._schema))
