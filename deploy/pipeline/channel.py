"""The bounded queue between two stages, and the threads that work between them.

A channel knows its producers: when the last one is done it ends, and ``get`` answers None (the
sentinel, sent in ``finally``). A channel that keeps only the newest item of each stream never makes
its producer wait; what it displaces is handed to ``on_drop``, so that nothing vanishes uncounted.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Aborted(Exception):
    """The pipeline was aborted because another stage failed."""


class Channel(Generic[Item]):
    """A bounded queue that keeps order.

    Args:
        capacity: Items that wait at most (with ``newest_of``: 1 for each key).
        producers: Number of :meth:`close` calls after which the channel ends.
        newest_of: Key of an item: a new item displaces a waiting one of its key. Items whose key
            is None are all kept.
        on_drop: Called with every displaced item.
    """

    def __init__(
        self,
        capacity: int = 2,
        producers: int = 1,
        newest_of: Callable[[Item], Hashable | None] = lambda item: None,
        on_drop: Callable[[Item], None] = lambda item: None,
    ) -> None:
        self._capacity = capacity
        self._open = producers
        self._key = newest_of
        self._on_drop = on_drop
        self._items: deque[Item] = deque()
        self._newest: OrderedDict[Hashable, Item] = OrderedDict()
        self._changed = threading.Condition()
        self._aborted = False

    def put(self, item: Item) -> None:
        """Add an item; wait until the queue has space, or displace the older item of its key.

        Raises:
            Aborted: Another stage failed.
        """
        displaced: list[Item] = []
        with self._changed:
            key = self._key(item)
            if key is not None:
                if key in self._newest:
                    displaced.append(self._newest[key])
                self._newest[key] = item  # keeps the place of the displaced one: streams take turns
            else:
                while len(self._items) >= self._capacity and not self._aborted:
                    self._changed.wait()
                self._items.append(item)
            if self._aborted:
                raise Aborted
            self._changed.notify_all()
        for old in displaced:
            self._on_drop(old)

    def offer(self, item: Item) -> bool:
        """Add an item if the queue has space; return whether it had."""
        with self._changed:
            if self._aborted or len(self._items) >= self._capacity:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self, most: int = 1) -> list[Item] | None:
        """Return the waiting items, 1 to ``most``, oldest first; None after the last.

        Raises:
            Aborted: Another stage failed.
        """
        with self._changed:
            while not (self._items or self._newest) and self._open > 0 and not self._aborted:
                self._changed.wait()
            if self._aborted:
                raise Aborted
            taken: list[Item] = []
            while len(taken) < most and self._items:
                taken.append(self._items.popleft())
            while len(taken) < most and self._newest:
                taken.append(self._newest.popitem(last=False)[1])
            self._changed.notify_all()
            return taken or None

    def close(self) -> None:
        """Note that one producer is done; after the last, readers get None."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def abort(self) -> None:
        """Raise :class:`Aborted` in every waiting thread, and drop the items."""
        with self._changed:
            self._aborted = True
            self._items.clear()
            self._newest.clear()
            self._changed.notify_all()


class ThreadGroup:
    """Threads that stop together: the first error of any of them ends all, and is re-raised."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.failed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._channels: list[Channel[Any]] = []
        self._lock = threading.Lock()

    def watch(self, channel: Channel[Item]) -> Channel[Item]:
        """Abort a channel when a thread fails; returns it."""
        self._channels.append(channel)
        return channel

    def start(
        self, name: str, work: Callable[[], None], *outputs: Channel[Any]
    ) -> threading.Thread:
        """Run ``work`` in a thread; when it ends, however it ends, close its ``outputs``."""

        def body() -> None:
            try:
                work()
            except Aborted:
                pass
            except BaseException as error:  # kept, and raised again in join()
                self._fail(error)
            finally:
                for output in outputs:
                    output.close()

        thread = threading.Thread(target=body, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self.error is None:
                self.error = error
        self.abort()

    def abort(self) -> None:
        """Stop every thread that waits on a channel."""
        self.failed.set()
        for channel in self._channels:
            channel.abort()

    def alive(self) -> list[str]:
        """Return the names of the threads that still run."""
        return [thread.name for thread in self._threads if thread.is_alive()]

    def join(self, timeout: float | None = None) -> None:
        """Wait for all threads, ``timeout`` seconds at most, and re-raise the first error."""
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        if self.error is not None:
            raise self.error
