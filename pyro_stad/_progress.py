"""The bar of long work: how far it is, gone when it ends."""

from __future__ import annotations

from tqdm.auto import tqdm

__all__ = ["progress_bar"]


def progress_bar(label: str, total: float, *, shown: bool, done: float = 0) -> tqdm:
    """Return a bar, to be used as a context.

    Arguments:
        label: what the work is.
        total: how much of it there is, in any unit.
        shown: whether it is drawn; one that is not counts all the same.
        done: how much of it a resumed run has done already.
    """
    return tqdm(total=total, initial=done, desc=label, disable=not shown, leave=False)
