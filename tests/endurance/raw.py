"""A node that breaks the protocol: `raw.py ADDR PORT ROLE CASE` dials, says HELLO as it should, and then does CASE.

Ends well when the other side has closed the connection, which is what it must do.  The layout is in src/wire.
"""
import os
import socket
import struct
import sys

ADDR, PORT, ROLE, CASE = sys.argv[1], int(sys.argv[2]), {"peer": 0, "client": 1}[sys.argv[3]], sys.argv[4]
HELLO, PING, OPEN, DATA, CREDIT = 1, 2, 5, 8, 9
NODE, SESSION = os.urandom(16), struct.unpack("<Q", os.urandom(8))[0]


def frame(kind, body=b"", flags=0, aux=0, stream=0, credit=0, length=None):
    length = len(body) if length is None else length
    return struct.pack("<IBBHII", length, kind, flags, aux, stream, credit) + body


def hello(version=1, lane=0, extra=b""):
    name = b"raw"
    body = b"farside\0" + struct.pack("<HBBB", version, ROLE, lane, 0) + NODE
    body += struct.pack("<QHHIIQ", SESSION, 0, 1, 65536, 1 << 20, 0)
    body += struct.pack("<I", len(name)) + name + struct.pack("<I", 0) + extra
    return frame(HELLO, body)


def connect_request(path):
    return struct.pack("<BBIII", 1, 0, 0, 0, 0) + struct.pack("<I", len(path)) + path


def dial(words):
    sock = socket.create_connection((ADDR, PORT), timeout=10)
    sock.sendall(words)
    return sock


def linked(lane=0):
    sock = dial(hello(lane=lane))
    head = exactly(sock, 16)
    length, kind = struct.unpack("<IB", head[:5])
    body = exactly(sock, length)
    assert kind == HELLO and body[12] == 0, "it did not say yes"
    return sock


def exactly(sock, size):
    got = b""
    while len(got) < size:
        part = sock.recv(size - len(got))
        assert part, "closed within the HELLO"
        got += part
    return got


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


CASES = {
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
    "another_version": lambda: not_a_hello(hello(version=9)),
    "http": lambda: not_a_hello(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "words_behind_the_hello": lambda: not_a_hello(hello() + frame(PING)),
    "a_hello_with_more_in_it": lambda: not_a_hello(hello(extra=b"more")),
}
CASES[CASE]()
