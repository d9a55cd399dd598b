"""How errors in a prompt's text are said."""

from shaderfusion.errors import InputError

__all__ = ["MOST_BRACKETS", "prompt_error"]

MOST_BRACKETS = 100
"""May be open at once."""

_BEFORE, _SHOWN = 10, 40


def prompt_error(text: str, at: int, rule: str) -> InputError:
    """An error that says where in the text it is, counted from 1, and shows what is there."""
    return InputError(f"prompt, at character {at + 1} ({text[max(0, at - _BEFORE) :][:_SHOWN]!r}): {rule}")
