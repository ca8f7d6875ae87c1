"""The pool of free frames: hands out the lowest first, at a cost that does not grow with the machine."""
import heapq


class Pool:
    """Frames that were never handed out lie in ranges; those that came back lie in a heap."""

    def __init__(self, ranges: tuple[tuple[int, int], ...]) -> None:
        self._ranges = ranges
        self.reset()

    def reset(self) -> None:
        """Everything is free again that was free at first."""
        self._heap: list[int] = []
        self._range = 0
        self._next = self._ranges[0][0] if self._ranges else 0
        self.free = sum(end - start for start, end in self._ranges)

    def give(self, frame: int) -> None:
        """Take a frame back."""
        heapq.heappush(self._heap, frame)
        self.free += 1

    def take(self) -> int:
        """The lowest free frame; there must be one."""
        self.free -= 1
        fresh = self._range < len(self._ranges)
        if self._heap and not (fresh and self._next < self._heap[0]):
            return heapq.heappop(self._heap)
        frame = self._next
        self._next += 1
        if self._next == self._ranges[self._range][1]:
            self._range += 1
            if self._range < len(self._ranges):
                self._next = self._ranges[self._range][0]
        return frame
