"""The identity of a full KV block: its tokens, everything before them, and the tenant's salt."""

from __future__ import annotations

from collections.abc import Callable

BlockHasher = Callable[[int, tuple[int, ...], str], int]
"""(key of the parent block, token ids of the block, salt) -> key; the first block's parent key is `ROOT_KEY`."""

ROOT_KEY = 0


def hash_block(parent_key: int, token_ids: tuple[int, ...], salt: str) -> int:
    """Chained 64-bit key by the interpreter's tuple hash. Collisions cost a miss, never a wrong answer."""
    return hash((parent_key, token_ids, salt))


class BlockContent:
    """What one full block holds. Contents form chains by `parent`; equal keys do not make equal contents."""

    __slots__ = ("key", "parent", "salt", "token_ids")

    def __init__(self, parent: BlockContent | None, token_ids: tuple[int, ...], salt: str, hasher: BlockHasher) -> None:
        self.parent = parent
        self.token_ids = token_ids
        self.salt = salt
        self.key: int = hasher(ROOT_KEY if parent is None else parent.key, token_ids, salt)

    def matches(self, cached: BlockContent) -> bool:
        """Whether both hold the same tokens after the same tokens for the same tenant, compared token by token.

        On a match `cached` takes over this content's parent: chains that grew apart are joined, so that the long
        way back to the root is walked once and later comparisons end at the first parent.
        """
        mine: BlockContent | None = self
        theirs: BlockContent | None = cached
        while mine is not theirs:
            if mine is None or theirs is None or mine.token_ids != theirs.token_ids or mine.salt != theirs.salt:
                return False
            mine, theirs = mine.parent, theirs.parent
        cached.parent = self.parent
        return True
