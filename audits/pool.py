"""The workers of one run: started when they are needed, as many as there is work for, shared by all audits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Self

import torch

from assay.audits.server import Server, ask, parameters

SIZE = 3
"""Workers side by side: one more than the cores of a small machine, since a worker waits while its answer is judged."""


class Pool:
    """Up to :data:`SIZE` servers."""

    def __init__(
        self, server: Server | None = None, python: str = "", variables: Mapping[str, str] | None = None
    ) -> None:
        """An empty pool, or one with a server that is coming up already.

        ``python`` is that of the servers, ``variables`` what their environment has besides.
        """
        self._python, self._variables = python or sys.executable, variables or {}
        self._servers: list[Server] = []
        self._stack = ExitStack()
        if server is not None:
            self._keep(server)

    def start(self, count: int = 1) -> list[Server]:
        """The first ``count`` servers; those not yet there are started and come up in the background."""
        while len(self._servers) < count:
            self._keep(Server(self._python, variables=self._variables))
        return self._servers[:count]

    def _keep(self, server: Server) -> None:
        self._stack.callback(server.close)
        self._servers.append(server)

    def describe(self, ref: str) -> tuple[str, ...] | None:
        """Parameter names of ``package.module:function``, read in a worker. ValueError when it cannot be imported."""
        return parameters(self.start()[0], ref)

    def environment(self, device: str) -> Mapping[str, str]:
        """The versions where the servers run, and the device there. RuntimeError when they do not come up."""
        told = ask(self.start()[0], {"op": "environment", "device": device})
        return {str(name): str(value) for name, value in told.items()}

    def each(self, places: Sequence[int], do: Callable[[int, Server], None], preload: tuple[str, ...] = ()) -> None:
        """``do(place, server)`` for each place, side by side; the first error in the order of places is raised."""
        if not places:
            return
        free: SimpleQueue[Server] = SimpleQueue()
        for server in self.start(min(SIZE, len(places))):
            free.put(server)
        loaded: set[Server] = set()

        def one(place: int) -> None:
            server = free.get()
            try:
                if server not in loaded:
                    loaded.add(server)
                    server.preload(preload)
                do(place, server)
            finally:
                free.put(server)

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # here, once: each audit sets it for itself, and must not put back another's
        executor = ThreadPoolExecutor(len(self._servers), thread_name_prefix="audit")
        try:
            for done in [executor.submit(one, place) for place in places]:
                done.result()
        finally:
            executor.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)

    def __enter__(self) -> Self:
        """The pool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all servers."""
        self._stack.close()
