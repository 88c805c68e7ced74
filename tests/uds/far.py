"""Servers for tests/uds.rs: `far.py DIR` serves every name below in DIR until it is killed."""
import array
import hashlib
import os
import queue
import random
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "common"))
from promise import serve  # noqa: E402

DIR = sys.argv[1]
MIB = 1 << 20
seen = queue.Queue()


def echo(client):
    while part := client.recv(65536):
        client.sendall(part)


def after_eof(client):
    """Answers when the request has ended."""
    total = hashlib.sha256()
    size = 0
    while part := client.recv(65536):
        total.update(part)
        size += len(part)
    client.sendall(f"{size} {total.hexdigest()}".encode())


def speaks_and_listens(client):
    """Ends its own direction first; what came afterwards is told by `seen`."""
    client.sendall(b"that is all")
    client.shutdown(socket.SHUT_WR)
    got = b""
    while part := client.recv(65536):
        got += part
    seen.put(b"%d bytes" % len(got))


def tells(client):
    client.sendall(seen.get(timeout=20))


def never_reads(_client):
    time.sleep(1000)


def source(client):
    size, seed = client.recv(100).split()
    rng = random.Random(int(seed))
    for _ in range(int(size) // MIB):
        client.sendall(rng.randbytes(MIB))


def slow_sink(client):
    total = hashlib.sha256()
    size = 0
    while part := client.recv(MIB):
        total.update(part)
        size += len(part)
        time.sleep(0.001)
    client.sendall(f"{size} {total.hexdigest()}".encode())


def peercred(client):
    pid, uid, gid = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    client.sendall(f"{uid} {gid}".encode())


def whose(client):
    """Whom each message is of, by SCM_CREDENTIALS."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    client.sendall(b"go")
    for _ in range(3):
        _, ancillary, _, _ = client.recvmsg(100, socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4))
        for level, kind, data in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                client.sendall(b"%d %d;" % struct.unpack("3i", data)[1:])


def slow(client):
    """Answers when the client has waited."""
    client.recv(1)
    time.sleep(1)
    client.sendall(b"late")


def takes_fds(client):
    """Writes its place into each fd that comes, and says how many came."""
    try:
        text, ancillary, flags, _ = client.recvmsg(100, socket.CMSG_SPACE(4 * 253))
    except OSError as e:
        seen.put(e.__class__.__name__.encode())
        return
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) // 4 * 4])
    for place, fd in enumerate(fds):
        os.write(fd, b"fd %d" % place)
        os.close(fd)
    seen.put(b"%s with %d fds" % (text, len(fds)))
    if text:
        client.sendall(b"got %d" % len(fds))


def gives_fds(client):
    """Sends the write ends of as many pipes as asked for; answers with what came through them."""
    count = int(client.recv(100))
    pipes = [os.pipe() for _ in range(count)]
    client.sendmsg([b"here"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [w for _, w in pipes]))])
    for _, writer in pipes:
        os.close(writer)
    for reader, _ in pipes:
        with os.fdopen(reader, "rb") as file:
            client.sendall(file.read() + b"\n")


def fds_of(ancillary):
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) // 4 * 4])
    return list(fds)


def takes_sockets(client):
    """Echoes on a socket that is passed; an fd that comes by that one gets a word."""
    _, ancillary, _, _ = client.recvmsg(100, socket.CMSG_SPACE(4))
    with socket.socket(fileno=fds_of(ancillary)[0]) as inner:
        while True:
            part, ancillary, _, _ = inner.recvmsg(65536, socket.CMSG_SPACE(4))
            for fd in fds_of(ancillary):
                os.write(fd, b"inner")
                os.close(fd)
            if not part:
                return
            if part != b"!":
                inner.sendall(part)


def many_fds(client):
    """Takes every fd that comes; when the end has come, says what was in each."""
    fds = []
    size = 0
    while True:
        part, ancillary, _, _ = client.recvmsg(65536, socket.CMSG_SPACE(4 * 253))
        fds += fds_of(ancillary)
        size += len(part)
        if not part:
            break
    said = []
    for fd in fds:
        with os.fdopen(fd, "rb") as file:
            said.append(file.read().decode())
    client.sendall(f"{size} {' '.join(said)}".encode())


def places(client):
    """As libvirt's daemons read: a message by read(2), which drops fds, then a byte that an fd comes with."""
    while head := client.recv(4):
        left = int(head)
        while left:
            left -= len(client.recv(left))
        part, ancillary, _, _ = client.recvmsg(1, socket.CMSG_SPACE(4))
        fds = fds_of(ancillary)
        client.sendall(f"{part.decode()} {os.read(fds[0], 10).decode() if fds else 'no fd'}\n".encode())
        for fd in fds:
            os.close(fd)


def gives_an_eventfd(client):
    client.recv(1)
    event = os.eventfd(0)
    client.sendmsg([b"event"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [event]))])
    seen.put(b"end" if not client.recv(1) else b"more")


def listen(name, mode=0o666, uid=0, gid=0):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name if name[:1] == "\0" else f"{DIR}/{name}")
    if name[:1] != "\0":
        os.chmod(f"{DIR}/{name}", mode)
    # SO_PEERCRED shows who has called this.
    os.setegid(gid)
    os.seteuid(uid)
    listener.listen(128)
    os.seteuid(0)
    os.setegid(0)
    return listener


os.makedirs(DIR, exist_ok=True)
os.chmod(DIR, 0o755)
threading.stack_size(256 << 10)
# Before any thread starts: all have the same uid.
others = [listen(name, uid=64055, gid=107) for name in ("others", "\0farside-others")]
for listener in others:
    threading.Thread(target=serve, args=(listener, echo), daemon=True).start()
for answer in (echo, after_eof, speaks_and_listens, tells, never_reads, source, slow_sink, peercred, whose, slow, takes_fds,
               gives_fds, gives_an_eventfd, takes_sockets, many_fds, places):
    threading.Thread(target=serve, args=(listen(answer.__name__), answer), daemon=True).start()
threading.Thread(target=serve, args=(listen("private", 0o600), peercred), daemon=True).start()
threading.Thread(target=serve, args=(listen("\0farside-test"), echo), daemon=True).start()
listen("stale").close()
print("READY", flush=True)
time.sleep(100_000)
