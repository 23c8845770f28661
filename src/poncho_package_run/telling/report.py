"""What a cold start tells the user: phases, progress, and who is waited for (stderr only)."""

import os
import time

from .messages import line, warn, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

# Nobody wants to read about what is over within a second, nor five lines a second about the rest.
_FIRST, _EVERY = 1.0, 0.25  # seconds


class Report:
    """Tells about a cold start: a transient line on a terminal, and with ``debug`` every phase.

    A context manager around the whole start, so that the summing up is the last line.

    Attributes:
        debug (bool): also say what each phase took, and sum up.
        files, bytes, records, left (int): for the summary: what was written, how many prefix
            records were rewritten, and how many strings were left that name another prefix.
    """

    def __init__(self, debug: bool = False) -> None:
        self.debug = debug
        self.files = self.bytes = self.records = self.left = 0
        self._seconds = 0.0  # of all phases: the command's own time is none of it
        self._phase_began = time.monotonic()
        self._due = self._phase_began + _FIRST
        self._drawn = 0
        for number in (0, 1, 2):
            try:
                os.fstat(number)
            except OSError:
                # Else a file of the environment would get the number, and then the messages.
                try:
                    os.open(os.devnull, os.O_RDWR)
                except OSError:  # no /dev: what holds the number need not be written to
                    os.open("/", os.O_RDONLY)
        try:
            self._columns = os.get_terminal_size(2).columns or 80  # a new pseudo-terminal says 0
        except OSError:
            self._columns = 0
            self._due = float("inf")  # no terminal: one comparison is all that progress costs

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, kind: object, *_error: object) -> None:
        self.erase()
        if self.debug and kind is None:
            warn(
                "{} files, {} bytes, {} records{} in {:.3f} seconds".format(
                    self.files,
                    self.bytes,
                    self.records,
                    ", {} strings without padding left".format(self.left) if self.left else "",
                    self._seconds,
                )
            )

    def phase(self, name: str, since: "Optional[float]" = None) -> "_Phase":
        """A context manager around one phase of the work; ``name`` is an infinitive.

        Phases follow each other: none is inside another.  ``since`` is when the phase began, by
        ``time.monotonic``, if that was earlier.
        """
        return _Phase(self, name, since)

    def progress(self, done: int, total: "Optional[int]") -> None:
        """Say how far into an archive of ``total`` bytes (None: a pipe) the unpacking is.

        Cheap enough for every chunk: until a new line is due it reads the clock at most.
        """
        elapsed = self._elapsed_if_due()
        if elapsed:
            rate = done / elapsed
            parts = ["unpacking: " + _megabytes(done)]
            if total:
                parts[0] += " of {} ({}%)".format(_megabytes(total), 100 * done // total)
            parts.append(_megabytes(rate) + "/s")
            if total and rate:
                parts.append("{:.0f} s left".format((total - done) / rate))
            self._draw(", ".join(parts))

    def waiting(self, holder: "Callable[[], str]", elapsed: float, seconds: float) -> None:
        """Say for whom the unpacking waits: for ``elapsed`` of at most ``seconds``."""
        if self._elapsed_if_due():
            self._draw(
                "waiting for {} to unpack the environment: {:.0f} of {:.0f} s".format(
                    holder(), elapsed, seconds
                )
            )

    def warn(self, message: str) -> None:
        """``warn``, on a line of its own."""
        self.erase()
        warn(message)

    def erase(self) -> None:
        """Take the transient line away, if there is one."""
        if self._drawn:
            # Spaces rather than an escape sequence: this works on a dumb terminal as well.
            write("\r{}\r".format(" " * self._drawn))
            self._drawn = 0

    def _elapsed_if_due(self) -> float:
        """Seconds since the phase began when a new transient line is due, else 0."""
        if self._due == float("inf"):
            return 0
        now = time.monotonic()
        if now < self._due:
            return 0
        self._due = now + _EVERY
        return now - self._phase_began

    def _draw(self, text: str) -> None:
        # A line that wraps could not be taken back with a carriage return.
        text = line(text)[: self._columns - 1]
        write("\r" + text.ljust(self._drawn))
        self._drawn = max(self._drawn, len(text))


class _Phase:
    def __init__(self, report: Report, name: str, since: "Optional[float]") -> None:
        self.report = report
        self.name = name
        self.since = since

    def __enter__(self) -> None:
        report = self.report
        report._phase_began = time.monotonic() if self.since is None else self.since
        report._due = max(report._due, report._phase_began + _FIRST)

    def __exit__(self, kind: object, *_error: object) -> None:
        report = self.report
        report.erase()
        seconds = time.monotonic() - report._phase_began
        report._seconds += seconds
        if report.debug:
            warn("{}{}: {:.3f} seconds".format(self.name, " (failed)" if kind else "", seconds))


def _megabytes(count: float) -> str:
    return "{:.1f} MB".format(count / 1e6)
