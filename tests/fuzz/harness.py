"""What the cases of all kinds share: a call that may be refused, if it is refused properly."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

REFUSALS = (ValueError, TypeError, OSError, ImportError)
MOST_LINES = 3
# What no user can make sense of: the insides of Python, torch, pybind11 and the C++ library.
INSIDES = re.compile(
    r"INTERNAL ASSERT|[Dd]ata pointer|unsupported memory format|bad_alloc|std::|incompatible function arguments"
    r"|has no attribute|not subscriptable|not iterable|unexpected keyword|positional argument|NoneType"
    r"|index out of range|(to|cannot) unpack|codec can't|(?<![-\w])0x[0-9a-f]{6}|struct\.error|Traceback"
)


class Different(AssertionError):  # noqa: N818
    """An accepted input whose value is another than the reference's."""


class Improper(AssertionError):  # noqa: N818
    """A refusal by an error of another kind, without a name, or in the words of somebody's insides."""


def attempt(
    call: Callable[..., Any],
    *args: Any,
    names: Sequence[str] = (),
    refusals: tuple[type[Exception], ...] = REFUSALS,
    **kwargs: Any,
) -> Any:
    """The value of a call, or None where it was refused properly.

    Args:
        call, args, kwargs: the call.
        names: what the text of a refusal must hold, as a file's name.
        refusals: the kinds of errors that a refusal may be.

    Raises:
        Improper: it was refused otherwise; the error itself is the cause.
    """
    try:
        return call(*args, **kwargs)
    except Exception as error:
        text = str(error)
        if not isinstance(error, refusals):
            raise Improper(f"an error of another kind: {type(error).__name__}: {text[:500]}") from error
        if lost := [name for name in names if name not in text]:
            raise Improper(
                f"the error does not name {', '.join(lost)}: {type(error).__name__}: {text[:500]}"
            ) from error
        if found := INSIDES.search(text):
            raise Improper(f"the error speaks of {found[0]!r}: {type(error).__name__}: {text[:500]}") from error
        if not text.strip() or text.count("\n") >= MOST_LINES:
            raise Improper(
                f"the error must have 1 to {MOST_LINES} lines: {type(error).__name__}: {text[:500]}"
            ) from error
        return None
