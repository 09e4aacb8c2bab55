"""The loop on /dev/fuse: read a request, have it answered, write the reply; threads for what may block.

One thread reads, dispatches and changes the union. What may wait for a disk (a read that is not cached, a sync, the
copying of a file's data) runs in a few others, which touch nothing but descriptors of their own. This module does not
know what a request means. The process that runs it must not use the mount.
"""

from __future__ import annotations

import errno
import os
import select
import time
from fcntl import ioctl

from unionfs.fuse.pipes import Piped
from unionfs.fuse.verbs.base import MAX_WRITE_BYTES, Later, untouched
from unionfs.fuse.wakefulness import Crowd, Wakefulness
from unionfs.fuse.wire import abi, replies, requests
from unionfs.lean import SimpleQueue, deque, format_exc, start_new_thread
from unionfs.syscalls import process
from unionfs.union.copyup import Pending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap

    from unionfs.fuse.dispatch import Dispatcher
    from unionfs.fuse.verbs.base import Message
    from unionfs.union.copyup import CopyJob

_BUFFER_BYTES = MAX_WRITE_BYTES + 8192
_WORKERS = 4
_ROUND = 16  # requests between two looks at what workers have done and at how many descriptors are open
_SPIN_NS = 30_000
_LULL_MS = 2  # without a request: then a burst is over
#: Errors of read(2) on the device that mean "go on": see fuse_dev_do_read in fs/fuse/dev.c.
_AGAIN = (errno.EINTR, errno.ENOENT, errno.EAGAIN)
#: And those that mean the end: unmounted, or cut off by an administrator (INIT_ABORT_ERROR).
_ENDED = (errno.ENODEV, errno.ECONNABORTED)


class PassthroughBacking:
    """Registers real files with the kernel (FUSE_DEV_IOC_BACKING_OPEN, Linux 6.9, CAP_SYS_ADMIN)."""

    __slots__ = ("_device", "_without_fsetid")

    def __init__(self, device: int) -> None:
        self._device = device
        self._without_fsetid = process.Without(process.CAP_FSETID)

    def open(self, descriptor: int, *, guarded: bool) -> int:
        """Return a backing id for an open file. Raises OSError where the kernel refuses it.

        The kernel writes with the rights that this thread has now (backing_file_write_iter in fs/backing-file.c). If
        ``guarded`` they do not include CAP_FSETID: then a write takes set-id bits away, whoever makes it.
        """
        if not guarded:
            return self._register(descriptor)
        with self._without_fsetid:
            return self._register(descriptor)

    def _register(self, descriptor: int) -> int:
        request = bytearray(abi.BACKING_MAP.pack(descriptor, 0))
        backing_id: int = ioctl(self._device, abi.FUSE_DEV_IOC_BACKING_OPEN, request)
        return backing_id

    def close(self, backing_id: int) -> None:
        """Give a backing id back."""
        ioctl(self._device, abi.FUSE_DEV_IOC_BACKING_CLOSE, backing_id.to_bytes(4, "little"))


class Workers:
    """A few threads, started when the first work comes; each piece of work answers by itself."""

    __slots__ = ("_queue", "_started")

    def __init__(self) -> None:
        self._started = 0
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def submit(self, work: Callable[[], None]) -> None:
        """Run ``work`` in another thread, soon."""
        self._queue.put(work)
        if self._started < _WORKERS:
            self._started += 1
            start_new_thread(_work, (self._queue,))


class Server:
    """Serves one connection until it is unmounted. ``report`` gets the text of what should never have happened."""

    def __init__(self, device: int, dispatcher: Dispatcher, report: Callable[[str], None]) -> None:
        self.device = device
        self.dispatcher = dispatcher
        self.report = report
        self.errors = 0
        self._workers = Workers()
        self._done: deque[CopyJob] = deque()
        self._short: deque[tuple[int, Later]] = deque()  # what this thread waits for once nobody asks
        self._busy = 0  # pieces of work that other threads have; only a hint
        self._waiting: dict[int, list[bytes]] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(device, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        self._buffer = untouched(_BUFFER_BYTES)
        self._wakefulness = Wakefulness()
        self._crowd = Crowd()
        self._in_burst = False  # whether the last request came soon after the one before it
        self._spin_ns = _SPIN_NS if len(os.sched_getaffinity(0)) > 1 else 0
        os.set_blocking(device, False)

    def run(self, ready: Callable[[], None]) -> None:
        """Answer requests until the connection ends; ``ready`` is called once the kernel has taken the
        answer to INIT.
        """
        while not self.dispatcher.connected and not self.dispatcher.ended:
            if not self._serve_some(1):
                return
        ready()
        while not self.dispatcher.ended:
            if not self._serve_some(_ROUND):
                return

    def _serve_some(self, most: int) -> bool:
        """Answer up to ``most`` requests, and wait for the next; return False when the connection has ended.

        All that is to be done between two requests is done before the wait: then somebody waits for an answer.
        """
        read, device, buffers, buffer = os.readv, self.device, [self._buffer], self._buffer
        idle = False
        for _ in range(most):
            try:
                length = read(device, buffers)
            except OSError as error:
                if error.errno in _ENDED:
                    return False
                if error.errno not in _AGAIN:
                    raise
                idle = error.errno == errno.EAGAIN
                break
            self._answer(buffer, length)
        self._finish_jobs()
        self._tidy()
        if self._short:
            self._finish_short(*self._short.popleft())
        elif idle:
            self._wait()
        return True

    def _tidy(self) -> None:
        try:
            for reply in self.dispatcher.tidy():
                self.send(reply)
        except Exception:
            self._bug("what nobody waits for")

    def stop(self) -> None:
        """End :meth:`run` soon, from a signal handler."""
        self.dispatcher.ended = True
        os.eventfd_write(self._wake, 1)

    def statistics(self) -> dict[str, object]:
        """Return what was asked of this server so far: requests by name, nodes known, errors that are bugs."""
        counts = {requests.OPCODES[code].name: count for code, count in enumerate(self.dispatcher.counts) if count}
        return {"requests": counts, "nodes": len(self.dispatcher.nodes.by_id), "errors": self.errors}

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Spin for a short while after the last request, which saves a wake-up; then sleep until there is work.

        While workers are busy this thread leaves them the interpreter, and where there is a crowd its processor. While
        requests follow one another, idle processors are kept awake as well.
        """
        poll, now = self._poll.poll, time.perf_counter_ns
        begun = now()
        deadline = begun + (0 if self._busy or self._crowd.is_there(begun) else self._spin_ns)
        self._wakefulness.be(awake=self._in_burst)
        ready: list[tuple[int, int]] = []
        while not ready and now() < deadline:
            ready = poll(0)
        ready = ready or poll(_LULL_MS)
        self._in_burst = bool(ready)
        if not ready:
            self._wakefulness.be(awake=False)
            ready = poll()
        if ready[-1][0] == self._wake:
            os.eventfd_read(self._wake)

    # -- answering ---------------------------------------------------------------------------------------------------

    def _answer(self, buffer: bytearray | mmap, length: int) -> None:
        request = self.dispatcher.decode(buffer, length)
        try:
            reply = self.dispatcher.handle(request)
        except Pending as pending:
            self.dispatcher.counts[request.opcode] -= 1  # it will be handled, and counted, once more
            self._queue_copy(pending.job, bytes(memoryview(buffer)[:length]))
            return
        except Exception:
            self._bug(request)
            reply = replies.error(request.unique, errno.EIO)
        if isinstance(reply, Later):
            if reply.short:
                self._short.append((request.unique, reply))
                return
            self._busy += 1
            if reply.asks:
                start_new_thread(self._run_later, (request.unique, reply))
            else:
                self._workers.submit(lambda: self._run_later(request.unique, reply))
        elif reply is not None:
            self.send(reply)

    def send(self, reply: Message) -> None:
        """Write a reply or a notification; that nobody waits for it any longer, or knows its node, is no error.

        Anything else is a bug, which must not end the mount: a reply that the kernel does not take ends its request
        with EIO (fuse_dev_do_write in fs/fuse/dev.c).
        """
        try:
            if isinstance(reply, tuple):
                os.writev(self.device, reply)
            elif isinstance(reply, Piped):
                reply.send(self.device)
            else:
                os.write(self.device, reply)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # interrupted, or unmounted: nobody waits any longer
                self._bug(type(reply))

    def _bug(self, request: object) -> None:
        self.errors += 1
        self.report(f"{request!r}\n{format_exc()}")

    # -- what blocks -------------------------------------------------------------------------------------------------

    def _run_later(self, unique: int, later: Later) -> None:
        """In a worker: do the work and answer."""
        reply = self._result(unique, later)
        self._busy -= 1
        self.send(reply)

    def _finish_short(self, unique: int, later: Later) -> None:
        self.send(self._result(unique, later))

    def _result(self, unique: int, later: Later) -> Message:
        try:
            return later.run()
        except OSError as error:
            return self.dispatcher.failure(unique, error)
        except Exception:
            self._bug(unique)
            return replies.error(unique, errno.EIO)

    def _queue_copy(self, job: CopyJob, message: bytes) -> None:
        """Let a worker copy a file up; ``message`` is handled once more when that is done."""
        waiting = self._waiting.get(job.node.id)
        if waiting is not None:
            waiting.append(message)
            return
        self._waiting[job.node.id] = [message]
        self._busy += 1
        self._workers.submit(lambda: self._copy(job))

    def _copy(self, job: CopyJob) -> None:
        """In a worker: copy, and wake the loop."""
        job.run()
        self._done.append(job)
        os.eventfd_write(self._wake, 1)

    def _finish_jobs(self) -> None:
        """Publish the copies that are done, and handle again the requests that waited for them."""
        while self._done:
            self._finish(self._done.popleft())

    def _finish(self, job: CopyJob) -> None:
        waiting = self._waiting.pop(job.node.id)
        self._busy -= 1
        edit = self.dispatcher.stack.writable()
        try:
            edit.copyup.finish(job)
        except OSError as error:
            for message in waiting:
                self.send(self.dispatcher.failure(abi.IN_HEADER.unpack_from(message)[2], error))
            return
        for message in waiting:
            self._answer(bytearray(message), len(message))


def _work(queue: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        queue.get()()
