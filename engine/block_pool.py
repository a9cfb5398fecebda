"""Paged KV bookkeeping: block tables, reference counts, and the prefix cache. No tensors live here."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.prefix_hash import BlockContent, BlockHasher, hash_block
from engine.request import Request


class IntegrityError(RuntimeError):
    """The pool's books disagree with the block tables in use: a leak, a double free or a shared writable block."""


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """Leading blocks of a request found in the cache; valid until the pool changes.

    `num_idle`: how many of them no request uses now, so that taking them uses up free blocks.
    """

    block_ids: tuple[int, ...] = ()
    num_tokens: int = 0
    num_idle: int = 0


@dataclass(slots=True)
class _Chain:
    """The contents of a request's leading full blocks, as far as they were hashed.

    Blocks `[0, num_read_only)` of its table are hits or published, later ones are written by this request alone.
    `publishes` turns false when the cache is reset under a running request: it may mix old and new keys and values.
    """

    contents: list[BlockContent] = field(default_factory=list)
    num_read_only: int = 0
    publishes: bool = True


_NO_PREFIX = CachedPrefix()


class BlockPool:
    """`num_blocks` KV blocks of `block_size` tokens, with a prefix cache by chained hash.

    A block is in exactly one of three states:

        used    reference count > 0: it stands in that many block tables
        idle    count 0, content still findable; kept from least to most recently used, evicted in that order
        blank   count 0, nothing worth finding; reused first

    Blocks are freed from the end of the table, so that the tail of a prefix is evicted before its head. All
    operations are O(1) per block touched. After nano-vllm's `BlockManager` and vLLM's `BlockPool`.

    `hasher` is replaceable so that tests can force collisions.
    """

    def __init__(
        self, num_blocks: int, block_size: int, *, prefix_caching: bool = True, hasher: BlockHasher = hash_block
    ) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}; give the KV cache more memory")
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.query_tokens = 0
        self.hit_tokens = 0
        self._hasher = hasher
        self._references = [0] * num_blocks
        self._contents: list[BlockContent | None] = [None] * num_blocks
        self._findable: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._chains: dict[Request, _Chain] = {}

    @property
    def num_free(self) -> int:
        return len(self._blank) + len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def num_tokens(self) -> int:
        """Tokens the whole pool can hold."""
        return self.num_blocks * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def find_prefix(self, request: Request) -> CachedPrefix:
        """The longest cached run of leading full blocks; leaves at least the last token to compute.

        Takes no block. The hashes are kept until `free`, so that asking again costs no hashing.
        """
        if not self.prefix_caching:
            return _NO_PREFIX
        chain = self._chains.get(request)
        if chain is None:
            chain = self._chains[request] = _Chain()
        block_ids: list[int] = []
        num_idle = 0
        for index in range((len(request.token_ids) - 1) // self.block_size):
            block_id = self._find(self._content(chain, request, index))
            if block_id is None:
                break
            self._adopt(chain, index, block_id)
            block_ids.append(block_id)
            num_idle += self._references[block_id] == 0
        return CachedPrefix(tuple(block_ids), len(block_ids) * self.block_size, num_idle)

    def fits(self, num_tokens: int, prefix: CachedPrefix, spare_blocks: int = 0) -> bool:
        """Whether a new table for `num_tokens` on top of `prefix` leaves `spare_blocks` free."""
        num_new = self.blocks_for(num_tokens) - len(prefix.block_ids)
        return num_new + prefix.num_idle + spare_blocks <= self.num_free

    def admit(self, request: Request, prefix: CachedPrefix) -> None:
        """Give `request` its table: the blocks of `prefix`, then new ones for all tokens known now.

        `prefix` must be fresh from `find_prefix` and `fits`. Hit statistics count the first admission only: what a
        preempted request finds again is its own work.
        """
        assert not request.block_table, "admitted twice"
        for block_id in prefix.block_ids:
            if self._references[block_id] == 0:
                del self._idle[block_id]
            self._references[block_id] += 1
        request.block_table.extend(prefix.block_ids)
        if self.prefix_caching:
            self._chains[request].num_read_only = len(prefix.block_ids)
            if request.num_preemptions == 0:
                self.query_tokens += len(request.token_ids)
                self.hit_tokens += prefix.num_tokens
        grown = self.grow(request, len(request.token_ids))
        assert grown, "admitted without fits()"

    def grow(self, request: Request, num_tokens: int) -> bool:
        """Extend the table to hold `num_tokens`; false, and nothing changed, when too few blocks are free."""
        missing = self.blocks_for(num_tokens) - len(request.block_table)
        if missing <= 0:
            return True
        if missing > self.num_free:
            return False
        blank, references = self._blank, self._references
        if missing <= len(blank):
            taken = blank[: -missing - 1 : -1]
            del blank[-missing:]
        else:
            taken = [self._take() for _ in range(missing)]
        for block_id in taken:
            references[block_id] = 1
        request.block_table += taken
        return True

    def publish(self, request: Request, num_computed: int) -> None:
        """Make the full blocks among the first `num_computed` tokens findable; their keys and values are written."""
        chain = self._chains.get(request)
        if chain is None:
            return
        num_full = num_computed // self.block_size
        if chain.publishes:
            for index in range(chain.num_read_only, num_full):
                content = self._content(chain, request, index)
                holder = self._findable.setdefault(content.key, request.block_table[index])
                if holder == request.block_table[index]:
                    self._contents[holder] = content
                elif self._find(content) is not None:
                    self._adopt(chain, index, holder)
        chain.num_read_only = max(chain.num_read_only, num_full)

    def free(self, request: Request) -> None:
        """Take back the request's blocks, last first. Published ones stay findable until reused."""
        self._chains.pop(request, None)
        references, contents, blank = self._references, self._contents, self._blank
        if self.prefix_caching:
            for block_id in reversed(request.block_table):
                left = references[block_id] = references[block_id] - 1
                if left == 0:
                    if contents[block_id] is None:
                        blank.append(block_id)
                    else:
                        self._idle[block_id] = None
        else:
            # Nobody shares a block, and none has content.
            for block_id in request.block_table:
                references[block_id] = 0
            blank.extend(reversed(request.block_table))
        # A new list: a step in flight may still read the old one.
        request.block_table = []

    def reset_prefix_cache(self) -> None:
        """Forget all cached content, as after a change of weights. Requests that run keep their blocks but publish
        no more."""
        self._findable.clear()
        self._contents = [None] * self.num_blocks
        self._blank.extend(self._idle)
        self._idle.clear()
        for request, chain in self._chains.items():
            chain.publishes = not request.block_table

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Compare the books with the tables of all live `requests`; raises `IntegrityError` saying what is wrong.

        Cost: the live tables and one counting pass over the reference counts; cheap enough for every idle moment.
        """
        live = list(requests)
        uses = Counter(block_id for request in live for block_id in request.block_table)
        for block_id, count in uses.items():
            if count != self._references[block_id]:
                raise IntegrityError(
                    f"block {block_id} stands in {count} tables, its reference count is {self._references[block_id]}"
                )
        if len(uses) + self.num_free != self.num_blocks:
            raise IntegrityError(f"{len(uses)} used + {self.num_free} free blocks are not {self.num_blocks}: a leak")
        if self._references.count(0) != self.num_free:
            raise IntegrityError("a free block has a reference count above zero")
        for request in live:
            chain = self._chains.get(request)
            for block_id in request.block_table[chain.num_read_only if chain else 0 :]:
                if uses[block_id] > 1:
                    raise IntegrityError(
                        f"block {block_id} is written by request {request.request_id!r} and stands in another table"
                    )

    def check_cache_integrity(self) -> None:
        """Compare the free lists with the cache, block by block; raises `IntegrityError`."""
        if len(set(self._blank)) != len(self._blank) or not self._idle.keys().isdisjoint(self._blank):
            raise IntegrityError("a block stands twice in the free lists: it was freed twice")
        findable = {block_id for block_id, content in enumerate(self._contents) if content is not None}
        if findable != set(self._findable.values()) or len(findable) != len(self._findable):
            raise IntegrityError("blocks with content and blocks the cache points at differ")
        if not findable.isdisjoint(self._blank) or not findable.issuperset(self._idle):
            raise IntegrityError("a blank block has content, or an idle block has none")
        for key, block_id in self._findable.items():
            content = self._contents[block_id]
            if content is None or content.key != key:
                raise IntegrityError(f"the cache points at block {block_id}, which holds something else")

    def _content(self, chain: _Chain, request: Request, index: int) -> BlockContent:
        """The content of full block `index`, hashed once. Called for each index in turn."""
        contents = chain.contents
        if index == len(contents):
            first = index * self.block_size
            token_ids = tuple(request.token_ids[first : first + self.block_size])
            parent = contents[-1] if contents else None
            contents.append(BlockContent(parent, token_ids, request.cache_salt, self._hasher))
        return contents[index]

    def _find(self, content: BlockContent) -> int | None:
        """The block that holds exactly `content`, compared token by token; `None` when there is none."""
        block_id = self._findable.get(content.key)
        if block_id is None:
            return None
        cached = self._contents[block_id]
        assert cached is not None
        return block_id if content.matches(cached) else None

    def _adopt(self, chain: _Chain, index: int, block_id: int) -> None:
        """Let the chain share the cached content object: equal prefixes are held in memory once, not per request."""
        cached = self._contents[block_id]
        assert cached is not None
        chain.contents[index] = cached
        if index + 1 < len(chain.contents):
            chain.contents[index + 1].parent = cached

    def _take(self) -> int:
        if self._blank:
            return self._blank.pop()
        block_id, _ = self._idle.popitem(last=False)
        content = self._contents[block_id]
        assert content is not None
        self._contents[block_id] = None
        del self._findable[content.key]
        return block_id
