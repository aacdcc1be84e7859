"""What a cache has allocated."""

from __future__ import annotations


class Memory:
    """Bytes that the layers of a cache have allocated: one number that they share."""

    def __init__(self) -> None:
        self.nbytes = 0
