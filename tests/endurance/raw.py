"""A node that breaks the protocol: `raw.py ADDR PORT ROLE CASE [SEED]` dials, says HELLO as it should, and then does CASE.

Ends well when the other side has closed the connection, which is what it must do.  The layout is in src/wire.
"""
import os
import random
import socket
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "common"))
from promise import exactly  # noqa: E402

ADDR, PORT, ROLE, CASE = sys.argv[1], int(sys.argv[2]), {"peer": 0, "client": 1}[sys.argv[3]], sys.argv[4]
HELLO, PING, OPEN, ACCEPT, RESET, DATA, CREDIT, RECIPE, MOVE, MOVE_BACK = 1, 2, 5, 6, 7, 8, 9, 10, 11, 12
FIN, EOR, MORE, HAS_FDS, READ_CLOSED, UNREAD = 1, 2, 4, 8, 16, 32
UDS, EXEC, LISTENER_CLIENT = 1, 2, 3
NODE, SESSION = os.urandom(16), struct.unpack("<Q", os.urandom(8))[0]


def frame(kind, body=b"", flags=0, aux=0, stream=0, credit=0, length=None):
    length = len(body) if length is None else length
    return struct.pack("<IBBHII", length, kind, flags, aux, stream, credit) + body


def hello(version=4, lane=0, extra=b""):
    name = b"raw"
    body = b"farside\0" + struct.pack("<HBBB", version, ROLE, lane, 0) + NODE
    body += struct.pack("<QHHIIQ", SESSION, 0, 1, 65536, 1 << 20, 0)
    body += struct.pack("<I", len(name)) + name + struct.pack("<II", 0, 0) + extra
    return frame(HELLO, body)


def connect_request(path):
    return struct.pack("<BBIII", 1, 0, 0, 0, 0) + struct.pack("<I", len(path)) + path


def dial(words):
    """Our end of a link: its keys are proven by a program of its own."""
    sock, other = socket.socketpair()
    sock.settimeout(10)
    subprocess.Popen([os.environ["RAW_LINK"], ADDR, str(PORT)], stdin=other, stdout=other, stderr=subprocess.DEVNULL)
    other.close()
    sock.sendall(words)
    return sock


def linked(lane=0):
    sock = dial(hello(lane=lane))
    head = exactly(sock, 16)
    length, kind = struct.unpack("<IB", head[:5])
    body = exactly(sock, length)
    assert kind == HELLO and body[12] == 0, "it did not say yes"
    return sock


def closed(sock):
    """It reads until the end, which must come."""
    sock.settimeout(5)
    try:
        while sock.recv(65536):
            pass
    except (ConnectionResetError, BrokenPipeError):
        pass


def breaking(words):
    sock = linked()
    try:
        sock.sendall(words)
    except (ConnectionResetError, BrokenPipeError):
        pass
    closed(sock)


def truncated():
    sock = linked()
    sock.sendall(frame(OPEN, b"half", stream=1, length=400))
    sock.shutdown(socket.SHUT_WR)
    closed(sock)


def over_credit():
    request = connect_request(b"/var/tmp/far/never_reads")
    breaking(frame(OPEN, request, aux=1, stream=1, credit=65536) + frame(DATA, bytes(60_000), stream=1) * 8)


def not_a_hello(words):
    closed(dial(words))


def recipe(rng):
    """One fd's recipe, right or nearly so; it may announce a stream of either side."""
    stream = struct.pack("<I", rng.choice((1, 3, 5, 7, 9, 2, 101, 0xFFFFFFFF)))
    # Not 3, a listener: ending its stream leaves it behind, which `ended_listeners` is about.
    kind = rng.choice((1, 2, 4, 5, 6))
    rest = {
        1: stream + bytes([rng.choice((1, 2, 3, 15))]),
        2: stream + bytes([rng.randrange(3), rng.randrange(2)]),
        4: bytes([rng.randrange(5), rng.choice((1, 2, 3))]),
        5: struct.pack("<H", rng.choice((0, 0, 1, 65535))),
        6: os.urandom(24) + b"\1" + struct.pack("<Q", rng.choice((0, 1 << 63))),
    }[kind]
    return bytes([kind]) + rest


def with_fds(rng, stream):
    count = rng.choice((1, 2, 3, 20))
    body = b"".join(recipe(rng) for _ in range(count))
    cut = rng.randrange(len(body))
    parts = [frame(RECIPE, body, stream=stream)]
    if rng.random() < 0.3:
        parts = [frame(RECIPE, body[:cut], MORE, stream=stream), frame(RECIPE, body[cut:], stream=stream)]
    return b"".join(parts) + frame(DATA, b"with fds", HAS_FDS, aux=count, stream=stream)


def any_words(rng, number):
    """A frame or two that could be meant, on one of a few streams; one in twenty may well end the session."""
    stream = rng.choice((1, 1, 1, 3, 3, 5, 7))
    name = rng.choice((b"/var/tmp/far/echo",) * 4 + (b"/var/tmp/far/talks", b"/none", b"\0x"))
    flags = rng.choice((0, 0, 0, 0, 0, FIN, EOR, READ_CLOSED, READ_CLOSED | UNREAD))
    body = bytes(rng.choice((0, 1, 100, 5000)))
    credit = rng.choice((0, 65536, 1 << 20, 1 << 31, 0xFFFFFFFF))
    if number < 4 or rng.random() < 0.1:
        fresh = (1, 3, 5, 7)[number] if number < 4 else 1001 + 2 * number
        return frame(OPEN, connect_request(name), aux=UDS, stream=fresh, credit=credit)
    if rng.random() < 0.05:
        return rng.choice((
            frame(OPEN, body, aux=rng.choice((UDS, EXEC, LISTENER_CLIENT, 0, 77)), stream=rng.choice((stream, 2001))),
            frame(ACCEPT, stream=rng.choice((stream, 2, 4)), credit=credit),
            frame(rng.choice((MOVE, MOVE_BACK)), stream=stream),
        ))
    return rng.choice((
        frame(DATA, body, flags & (FIN | EOR), stream=stream, credit=credit),
        frame(DATA, body, flags & (FIN | EOR), stream=stream, credit=credit),
        with_fds(rng, stream),
        frame(OPEN, struct.pack("<I", stream), aux=LISTENER_CLIENT, stream=3001 + 2 * number, credit=credit),
        frame(RESET, aux=rng.choice((0, 1, 104, 65535)), stream=rng.choice((5, 7, 9, 101))),
        frame(CREDIT, flags=flags & (READ_CLOSED | UNREAD), stream=stream, credit=credit),
        frame(PING, credit=credit),
    ))


def anything():
    """Two hundred sessions, each of frames that could be meant, on both links of its pair."""
    global SESSION
    seed = int(sys.argv[5])
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(200):
        SESSION = rng.getrandbits(64)
        socks = [linked()]
        if rng.random() < 0.5:
            socks.append(linked(lane=1))
        try:
            for number in range(rng.randrange(1, 60)):
                # What opens must come first, and on LAT; some of the rest waits for a MOVE on the other link.
                sock = socks[0] if number < 8 or rng.random() < 0.8 else socks[-1]
                sock.sendall(any_words(rng, number))
                time.sleep(rng.choice((0, 0, 0, 0.001)))
            # What the daemon does with it takes a moment; some sessions are cut in the midst of it.
            socks[0].settimeout(rng.choice((0.001, 0.02)))
            socks[0].recv(65536)
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass
        for sock in socks:
            sock.close()


def ended_listeners():
    """A listener crosses, its stream is ended in the orderly way, and then the session ends."""
    global SESSION
    words = frame(OPEN, connect_request(b"/var/tmp/far/echo"), aux=UDS, stream=1, credit=65536)
    words += frame(RECIPE, struct.pack("<BIBIB", 3, 9, 0, 5, 0), stream=1) + frame(DATA, b"x", HAS_FDS, aux=1, stream=1)
    for last in (frame(DATA, b"x", stream=9), frame(DATA, flags=FIN, stream=9)) * 5:
        SESSION += 1
        sock = linked()
        sock.sendall(words)
        time.sleep(0.1)
        sock.sendall(last)
        time.sleep(0.1)
        sock.close()


CASES = {
    "ended_listeners": ended_listeners,
    "anything": anything,
    "garbage": lambda: breaking(b"\xff" * 4096),
    "zeros": lambda: breaking(bytes(4096)),
    "truncated": truncated,
    "over_credit": over_credit,
    "unknown_type": lambda: breaking(frame(77)),
    "unknown_flags": lambda: breaking(frame(CREDIT, flags=0x80, stream=1)),
    "too_long": lambda: breaking(frame(DATA, b"x" * 1000, stream=1, length=1 << 20)),
    "a_stream_that_never_was": lambda: breaking(frame(CREDIT, stream=5)),
    "a_number_that_is_not_its_own": lambda: breaking(frame(OPEN, connect_request(b"/x"), aux=1, stream=2)),
    "a_second_hello": lambda: breaking(hello()),
    "ping_flood": lambda: breaking(frame(PING, stream=1) * 5 + frame(78)),
    "another_version": lambda: not_a_hello(hello(version=1)),
    "http": lambda: not_a_hello(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "words_behind_the_hello": lambda: not_a_hello(hello() + frame(PING)),
    "a_hello_with_more_in_it": lambda: not_a_hello(hello(extra=b"more")),
}
CASES[CASE]()
