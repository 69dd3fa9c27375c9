"""hako.loop: who waits is called when there is something for it, and only then."""

import os

from hako.loop import Loop


def test_what_was_ready_is_not_taken_for_who_has_its_number_now():
    """Of two that are ready the first ends the other, and one that has nothing to read yet gets its number."""
    loop, readers, called = Loop(), [], []
    stranger, writer = os.pipe()

    def end(fd):
        called.append(fd)
        (other,) = set(readers) - {fd}
        loop.forget(other)
        os.dup2(stranger, other)
        loop.watch(other, lambda: called.append("stranger"))

    for _ in range(2):
        reader, other_end = os.pipe()
        readers.append(reader)
        os.close(other_end)
        loop.watch(reader, lambda reader=reader: end(reader))
    loop.turn()
    assert called in ([readers[0]], [readers[1]])
    loop.forget(called[0])
    os.write(writer, b"x")
    loop.turn()
    assert called[1:] == ["stranger"]
    for fd in (*readers, stranger, writer):
        os.close(fd)
