"""The one exception that means "the input or the settings are wrong", as opposed to a defect."""

from collections.abc import Iterable

__all__ = ["InputError", "some"]


class InputError(ValueError):
    """A user mistake: what is wrong, where, and what to do, in one line.

    The command line prints it without a traceback and exits with code 2.
    """


def some(items: Iterable[object], most: int = 10) -> str:
    """Names up to ``most`` of the items, then says how many more there are."""
    names = [str(item) for item in items]
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text} … and {len(names) - most} more"
