"""The environment's Python, looked at when it comes by: an unpacking for nothing takes minutes."""

from ..machine.architecture import HEAD, foreign
from ..telling.failures import wrong_machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable, Iterator

    from ..archive.member import Buffer

_NAME = b"bin/python"


def is_python(path: bytes) -> bool:
    """Whether a member is, by its path, the Python of an environment without a top directory.

    One further down may be a part of a package, for another machine (a cross compiler's).
    """
    return path.startswith(_NAME) and path[len(_NAME) :].replace(b".", b"").isdigit()


def checked(path: bytes, body: "Iterable[Buffer]") -> "Iterator[Buffer]":
    """The same body.

    Raises RelocationError: it is a program for another kind of machine.
    """
    head = b""
    for piece in body:
        if len(head) < HEAD:
            head += bytes(piece[: HEAD - len(head)])
            if len(head) == HEAD:
                found = foreign(head)
                if found is not None:
                    raise wrong_machine(path, *found)
        yield piece
