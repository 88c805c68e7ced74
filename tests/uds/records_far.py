"""Servers of records for tests/uds_records.rs: `records_far.py DIR` serves the names below until it is killed."""
import array
import os
import queue
import socket
import sys
import threading
import time

DIR = sys.argv[1]
SO_SNDBUFFORCE = 32
logged = queue.Queue()


def make(kind, name):
    sock = socket.socket(socket.AF_UNIX, kind)
    if name[:1] != "\0":
        name = f"{DIR}/{name}"
        if os.path.exists(name):
            os.unlink(name)
    sock.bind(name)
    if name[:1] != "\0":
        os.chmod(name, 0o666)
    return sock


def put_word(ancillary):
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) // 4 * 4])
    for fd in fds:
        os.write(fd, b"a word")
        os.close(fd)


def echo(client):
    client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 << 20)
    while True:
        record, ancillary, _, _ = client.recvmsg(2 << 20, socket.CMSG_SPACE(4 * 8))
        put_word(ancillary)
        if not record:
            client.close()
            return
        client.sendall(record)


def accept(listener):
    listener.listen(128)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=echo, args=(client,), daemon=True).start()


def reply(sock):
    while True:
        record, ancillary, _, sender = sock.recvmsg(1 << 20, socket.CMSG_SPACE(4 * 8))
        put_word(ancillary)
        if sender:
            try:
                sock.sendto(record, sender)
            except OSError as e:
                print(f"reply to {sender!r}: {e}", file=sys.stderr, flush=True)


def log(sock):
    while True:
        logged.put(sock.recv(1 << 20))


def tell(listener):
    """To each client as many logged records as it wants, each of which must come within 20 s."""
    listener.listen(8)
    while True:
        client, _ = listener.accept()
        with client:
            for _ in range(int(client.recv(20))):
                client.send(logged.get(timeout=20))
            client.recv(20)


def count(listener):
    """To each client as many records as it wants, and the end at once."""
    listener.listen(8)
    while True:
        client, _ = listener.accept()
        with client:
            for n in range(int(client.recv(20))):
                client.send(b"%d" % n)


def speak(listener):
    """To each client some records at once, before it has said anything."""
    listener.listen(64)
    while True:
        client, _ = listener.accept()
        with client:
            for record in (b"AAA", b"", b"BBB", b"C" * 40_000, b"CCC"):
                client.send(record)
            client.recv(10)


threading.stack_size(256 << 10)
for target, kind, names in ((accept, socket.SOCK_SEQPACKET, ("seq", "\0farside-seq")),
                            (reply, socket.SOCK_DGRAM, ("dgram", "\0farside-dgram")),
                            (log, socket.SOCK_DGRAM, ("log",)),
                            (tell, socket.SOCK_SEQPACKET, ("logged",)),
                            (count, socket.SOCK_SEQPACKET, ("counts",)),
                            (speak, socket.SOCK_SEQPACKET, ("speaks",)),
                            (accept, socket.SOCK_STREAM, ("stream",))):
    for name in names:
        threading.Thread(target=target, args=(make(kind, name),), daemon=True).start()
print("READY", flush=True)
time.sleep(100_000)
