"""Prepares many chunks, in this process or in several.

In this process, the tokenizer works on one chunk, on all cores and without Python's lock, while
Python renders the next one. This needs only one copy of the tokenizer, which takes hundreds of
megabytes for a large vocabulary.

Several processes also share the rendering; each has its own tokenizer. They are plain subprocesses
that read chunks from standard input and write examples to standard output. They do not import the
user's main module, so a script needs no ``__main__`` guard. They are not forked, so they inherit no
threads.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from graftlm.config import DataConfig
from graftlm.data.prepare import Prepared, RenderedChunk, finish, prepare, render
from graftlm.data.readers import Raw
from graftlm.data.tokenise import Encoder
from graftlm.errors import ConfigError, GraftLMError

__all__ = ["prepare_all"]

_AHEAD = 2
"""Chunks in flight for each process."""


def prepare_all(
    chunks: Iterable[Sequence[Raw]], encoder: Encoder, config: DataConfig, workers: int
) -> Iterator[Prepared]:
    """Run `prepare` on all chunks, in order, with at most a few chunks in memory."""
    most = 4 * (os.cpu_count() or 1)
    if workers > most:
        raise ConfigError(
            f"data.workers={workers}: each is a process with a tokenizer of its own; this machine "
            f"has {os.cpu_count()} cores, so at most {most}"
        )
    if workers == 0:
        yield from _pipelined(chunks, encoder, config)
        return
    setup = pickle.dumps((encoder.tokenizer, config))
    processes = [_Worker(setup) for _ in range(workers)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def work(chunk: Sequence[Raw]) -> Prepared:
        process = idle.get()
        try:
            return process(chunk)
        finally:
            idle.put(process)

    pending: deque[Future[Prepared]] = deque()
    threads = ThreadPoolExecutor(workers)
    try:
        for chunk in chunks:
            pending.append(threads.submit(work, chunk))
            if len(pending) >= _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.close()


def _pipelined(
    chunks: Iterable[Sequence[Raw]], encoder: Encoder, config: DataConfig
) -> Iterator[Prepared]:
    with ThreadPoolExecutor(1) as thread:
        before: tuple[RenderedChunk, Future[Sequence[Any]]] | None = None
        for chunk in chunks:
            rendered = render(chunk, encoder, config)
            encodings = thread.submit(encoder.encode, rendered.texts)
            if before is not None:
                yield finish(before[0], before[1].result(), encoder, config)
            before = rendered, encodings
        if before is not None:
            yield finish(before[0], before[1].result(), encoder, config)


class _Worker:
    """One process; call it with a chunk."""

    def __init__(self, setup: bytes) -> None:
        environment = os.environ | {
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from graftlm.data.workers import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._send(setup)

    def __call__(self, chunk: Sequence[Raw]) -> Prepared:
        assert self._process.stdout is not None
        self._send(pickle.dumps(chunk, protocol=pickle.HIGHEST_PROTOCOL))
        answer = _receive(self._process.stdout)
        if answer is None:
            code = self._process.wait()
            raise GraftLMError(
                f"a process that tokenises the data ended with code {code}, possibly for want of "
                "memory. Set data.workers to a smaller number, or to 0, which takes the least."
            )
        prepared: Prepared = pickle.loads(answer)
        return prepared

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer shows the failure
            _write(self._process.stdin, data)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def serve() -> None:
    """The main function of a worker process."""
    inlet, outlet = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray print must not mix with the answers
    setup = _receive(inlet)
    if setup is None:
        return
    tokenizer, config = pickle.loads(setup)
    encoder = Encoder(tokenizer, config)
    while (chunk := _receive(inlet)) is not None:
        _write(outlet, pickle.dumps(prepare(pickle.loads(chunk), encoder, config)))


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(struct.pack("<q", len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    head = pipe.read(8)
    if len(head) < 8:
        return None
    (size,) = struct.unpack("<q", head)
    data = pipe.read(size)
    return data if len(data) == size else None
