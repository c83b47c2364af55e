"""What a completion says once it has thought."""

from __future__ import annotations

from qtarget.data.thought import MARKS


def after_thought(completion: str) -> str:
    """What follows the last thought; "" where a thought is not closed: what stands in it is no answer.

    A thought may have been opened in the prompt, so what closes one is enough.
    """
    for opened, closed in MARKS:
        if opened in completion or closed in completion:
            completion = _after(completion, opened, closed)
    return completion


def _after(completion: str, opened: str, closed: str) -> str:
    said = completion.rpartition(closed)[2] if closed in completion else completion
    return "" if opened in said else said


def opens_thought(prompt: str) -> str:
    """The mark of the thought that a prompt ends within, "" where it ends in none."""
    end = prompt.rstrip()
    return next((opened for opened, _ in MARKS if end.endswith(opened)), "")
