"""Work in a process of its own, to which signals are sent at a chosen moment."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any


def in_child(work: Callable[[], Any]) -> int:
    """Runs `work` in a forked process; its exit code, or minus the signal that ended it."""
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        sys.stderr = os.fdopen(2, "w", buffering=1)  # pytest put something else there
        try:
            work()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def signal_at(owner: Any, name: str, number: signal.Signals, *, call: int, after: bool = False) -> Callable[[], None]:
    """A patch for the child: it sends itself the signal when `owner.name` is called for the `call`th time."""

    def patch() -> None:
        inner, calls = getattr(owner, name), []

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if after:
                result = inner(*args, **kwargs)
            if len(calls) == call:
                os.kill(os.getpid(), number)
            return result if after else inner(*args, **kwargs)

        setattr(owner, name, wrapped)

    return patch


def signal_twice(owner: Any, name: str, again: Any, there: str, *, call: int) -> None:
    """For the child: SIGTERM when `owner.name` is called, and once more when `again.there` is called after that."""
    signal_at(owner, name, signal.SIGTERM, call=call)()
    inner, calls = getattr(owner, name), []

    def then(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            signal_at(again, there, signal.SIGTERM, call=1)()
        return inner(*args, **kwargs)

    setattr(owner, name, then)
