"""A process that times candidates on a GPU: what hangs or ends the device's context costs this process, not the build.

    python -m dovetail.tuner.cuda_worker CONNECTION ORDINAL

`cuda_isolated` starts it and sends requests through the connection (an inherited socket): ("measure", trials, machine),
("network", trial, machine), ("compare", choices, replays), ("close",). Before each run it says which candidate has its turn,
("at", index); an answer is ("done", value), ("error", text), or ("lost", text) as its last word. When its standard input
ends, it ends, too.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from dovetail.core.errors import DeviceLostError, Error
from dovetail.device.cuda.driver import Driver
from dovetail.device.cuda.driver import driver as driver_of
from dovetail.tuner.cuda_network import Network
from dovetail.tuner.cuda_time import Meter


class _Server:
    """Answers requests about one device."""

    def __init__(self, driver: Driver, say: Callable[[Any], None]) -> None:
        self._meter, self._say = Meter(driver), say
        self._network: Network | None = None

    def answer(self, kind: str, *given: Any) -> Any:
        """The value that a request asks for."""
        if kind == "measure":
            trials, machine = given
            return self._meter.measure(trials, machine, self._at)
        if kind == "network":
            self._network = self._meter.network(*given)
        elif kind == "compare":
            assert self._network is not None, "a network comes before its choices"
            choices, replays = given
            return self._network.compare(choices, replays, self._at)
        elif kind == "close" and self._network is not None:
            self._network.close()
            self._network = None
        return None

    def _at(self, index: int) -> None:
        self._say(("at", index))


def serve(connection: Connection, opened: Callable[[], Driver]) -> None:
    """Answer requests until the connection ends or the device is lost; `opened` gives the device."""
    try:
        server = _Server(opened(), connection.send)
    except Error as error:
        connection.send(("error", str(error)))
        return
    connection.send(("done", None))
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            answer = ("done", server.answer(*request))
        except DeviceLostError as error:
            connection.send(("lost", str(error)))
            return
        except Error as error:
            answer = ("error", str(error))
        connection.send(answer)


def main(opened: Callable[[int], Driver] = driver_of) -> None:
    """Serve the connection of the command line."""

    def watch() -> None:
        sys.stdin.buffer.read()  # its end is that of whoever started this; a kernel that hangs must not keep the process
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    serve(Connection(int(sys.argv[1])), lambda: opened(int(sys.argv[2])))
    os._exit(0)  # a device that is lost can release nothing


if __name__ == "__main__":
    main()
