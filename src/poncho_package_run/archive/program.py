"""Other programs that decode: zstd, unsquashfs."""

import errno
import os
import select
import subprocess
import time

from ..telling.errors import InputOutputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Generator, Optional

    from .source import Source

_INPUT, _OUTPUT = 1 << 17, 1 << 20
_LOOK = 100  # milliseconds
_COMPLAINTS = 1 << 12  # bytes of the last ones, which tell best
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


class Program:
    """A program and the pipes from and to it, in which nobody ever waits without looking up.

    Attributes:
        complaints (bytes): the end of what it wrote to its stderr, if that is not its output.
        status (int): as of wait(2), not 0 if it failed or its status is lost; once it has ended.

    Raises:
        OSError: it cannot be run here.
        InputOutputError: a limit of the system or of this process keeps it from being run.
    """

    def __init__(self, command: tuple, look: "Callable[[], None]", **pipes: "Any") -> None:
        self.complaints = b""
        self.status = -1
        self._look = look
        self._data = b""  # what is to be written to it
        try:
            self._process: Any = subprocess.Popen(command, **pipes)
        except OSError as error:
            if error.errno in _SHORT:
                raise InputOutputError(
                    "cannot start {}: {}; raise the limit (ulimit -n, -u, -v)".format(
                        command[0], error.strerror
                    )
                )
            raise

    def output(self, source: "Optional[Source]" = None) -> "Generator[bytes, None, None]":
        """What it writes, in chunks of 1 MiB; ``source`` is written to it meanwhile.

        At the end it has ended.  Closing the iterator early ends it too.
        """
        process = self._process
        poll = select.poll()
        reading = [pipe.fileno() for pipe in (process.stdout, process.stderr) if pipe]
        output = reading[0]
        for number in reading:
            poll.register(number, select.POLLIN)
        pieces, held = [], 0
        try:
            if source is not None:
                os.set_blocking(process.stdin.fileno(), False)
                self._data = source.read(_INPUT)
                poll.register(process.stdin, select.POLLOUT)
            while reading:
                for number, _ in poll.poll(_LOOK):
                    if number not in reading:
                        self._feed(poll, number, source)
                        continue
                    piece = os.read(number, _OUTPUT - held)
                    if not piece:
                        poll.unregister(number)
                        reading.remove(number)
                    if number != output:
                        self.complaints = (self.complaints + piece)[-_COMPLAINTS:]
                        continue
                    pieces.append(piece)
                    held += len(piece)
                    if held == _OUTPUT or (held and not piece):
                        yield b"".join(pieces)
                        pieces, held = [], 0
                self._look()
            self._wait(self._look)
        finally:
            self._end()

    def _feed(self, poll: "Any", number: int, source: "Any") -> None:
        """Write, or read what is to be written next; then wait for what the other takes."""
        stdin = self._process.stdin.fileno()
        try:
            if number == stdin:
                self._data = self._data[os.write(stdin, self._data) :]
                if self._data:
                    return
                poll.register(source.fd, select.POLLIN)
            else:
                self._data = source.read(_INPUT)
                if not self._data:
                    self._process.stdin.close()
                else:
                    poll.register(stdin, select.POLLOUT)
        except BlockingIOError:
            return
        except BrokenPipeError:
            pass  # the program reads no more: its status says why
        poll.unregister(number)

    def _wait(self, look: "Callable[[], None]", seconds: float = float("inf")) -> None:
        """Wait for its end.  Popen.wait takes a lost status (see wait(2), ECHILD) for success."""
        process = self._process
        pause, end = 0.0005, time.monotonic() + seconds
        while process.returncode is None:
            try:
                pid, status = os.waitpid(process.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = process.pid, -1
            if pid:
                process.returncode = self.status = status
            elif time.monotonic() > end:
                return  # not even killed it ends: a disk that does not answer
            else:
                look()
                time.sleep(pause)
                pause = min(2 * pause, 0.05)

    def _end(self) -> None:
        process = self._process
        if process.returncode is None:
            process.kill()
            self._wait(lambda: None, 1)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
