"""A finished table that is too large for the memory, in a temporary file."""

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
    """A temporary file that a table is written to, piece by piece; there is none before the first piece.

    It is removed when the process that made it ends.

    What cannot be written is raised at the end: a full disk for temporary files stops no run whose answers the ledger
    still takes.

    Args:
        schema (`pyarrow.Schema`): The table's.
        rows (`int`): Rows of one piece in the file, at most.
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
        """The path of the whole file.

        Raises:
            LedgerError: If it could not be written.
        """
        try:
            self._stack.close()
            if self._failed is not None:
                raise self._failed
        except OSError as error:
            raise LedgerError(
                f"The finished table cannot be written to {tempfile.gettempdir()}: {error}. Make room there, or set "
                "TMPDIR, and run again; answers that are in the ledger are not asked for twice."
            ) from error
        return self._path

    def _opened(self) -> pa.RecordBatchStreamWriter:
        folder, owner = tempfile.mkdtemp(prefix="persyn-hf-"), os.getpid()
        atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
        self._path = os.path.join(folder, "generated.arrow")
        file = self._stack.enter_context(pa.OSFile(self._path, "wb"))
        return self._stack.enter_context(pa.ipc.new_stream(file, self._schema))
