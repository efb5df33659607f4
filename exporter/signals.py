"""Signals, heeded before anything else is imported.

A service imports for a second and more until it can stop in good order. Up to then there is nothing to put in order,
so SIGTERM and SIGINT end it at once, with exit code 0. As process 1 of a container it needs handlers for that: there
the kernel drops every signal that a process has no handler for, and SIGTERM in the first second would be lost. What is
sent before the first line of Python runs is lost as well, unless whoever starts us has blocked it: ``env
--block-signal``, as the image does, keeps it until ``heed``.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

#: Commands that run until they are stopped: being stopped is how they succeed.
SERVICES = ("run", "demo", "simulate")
STOPPING = (signal.SIGTERM, signal.SIGINT)
_NUMBERS = (*STOPPING, signal.SIGHUP)

_heeded = False
_reload_wanted = False


def heed(words: Sequence[str]) -> None:
    """Heed signals until the command in ``words`` has handlers of its own.

    A command that is no service ends as others do: by the signal, or as process 1 with the exit code that a shell
    makes of it.
    """
    global _heeded
    is_service, is_first = bool(words) and words[0] in SERVICES, os.getpid() == 1
    if is_service or is_first:
        for number in STOPPING if is_service else _NUMBERS:
            signal.signal(number, _end if is_service else _end_as_by_signal)
    if is_service:
        signal.signal(signal.SIGHUP, _remember)
        _heeded = True
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)


def take_reload() -> bool:
    """Whether SIGHUP came since this was asked last."""
    global _reload_wanted
    wanted, _reload_wanted = _reload_wanted, False
    return wanted


def keep_out() -> None:
    """The thread that calls this is given no signal any more: how a pool begins its threads.

    A thread that was waited for may yet be there for a moment, when the handlers are not.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)


@contextmanager
def blocked() -> Iterator[None]:
    """A thread that is started here is never given a signal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_end() -> None:
    """It is being stopped already, and no second signal may change the exit code.

    asyncio gives its handlers back before the interpreter has ended. By then no other thread takes signals.
    """
    if _heeded:
        signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(0)  # an exception could get lost, wherever in an import it is raised


def _end_as_by_signal(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _remember(number: int, frame: FrameType | None) -> None:
    global _reload_wanted
    _reload_wanted = True
