"""Servers for tests/endurance.rs: `far.py DIR` serves every name below in DIR until it is killed.

One thread and one epoll for thousands of echo connections; the others have a thread a client.
"""
import contextlib
import hashlib
import os
import queue
import select
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "common"))
from promise import serve  # noqa: E402

DIR = sys.argv[1]
seen = queue.Queue()
lock = threading.Lock()
opened = 0


def listen(name):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{DIR}/{name}")
    os.chmod(f"{DIR}/{name}", 0o666)
    listener.listen(4096)
    return listener


def echo_many(listener):
    """Echoes small requests on any number of connections."""
    epoll, clients = select.epoll(), {}
    epoll.register(listener, select.EPOLLIN)
    while True:
        for number, _ in epoll.poll():
            if number == listener.fileno():
                client, _ = listener.accept()
                clients[client.fileno()] = client
                epoll.register(client, select.EPOLLIN)
                continue
            client = clients[number]
            try:
                part = client.recv(4096)
                client.sendall(part)
            except OSError:
                part = b""
            if not part:
                epoll.unregister(client)
                del clients[number]
                client.close()


def sums(client):
    """A length, so many bytes; answers with as many, then their checksum."""
    while head := client.recv(8, socket.MSG_WAITALL):
        left, total = struct.unpack("<Q", head)[0], hashlib.sha256()
        while left and (part := client.recv(min(left, 65536))):
            total.update(part)
            client.sendall(part)
            left -= len(part)
        if left:
            return
        client.sendall(total.digest())


def counts(client):
    """How many connections there are; this one is not one of them."""
    client.sendall(b"%d" % (opened - 1))


def mortal(client):
    """A process of its own that says when it dies, and dies at once."""
    client.recv(10)
    child = os.fork()
    if child == 0:
        # The parent's copy of the socket is closed as soon as it may; until then this is no end for anyone.
        time.sleep(0.3)
        client.sendall(struct.pack("<d", time.monotonic()))
        os.kill(os.getpid(), 9)
    client.close()
    os.waitpid(child, 0)


def watch(client):
    """How long after the client's last words its end came, and how."""
    last = client.recv(8, socket.MSG_WAITALL)
    how = "EOF"
    try:
        client.recv(1)
    except ConnectionResetError:
        how = "ECONNRESET"
    seen.put(f"{time.monotonic() - struct.unpack('<d', last)[0]:.4f} {how}")


def talks(client):
    """Writes until its client is gone."""
    client.sendall(b"something that is not read")
    try:
        how = "EOF" if client.recv(1) == b"" else "bytes"
    except ConnectionResetError:
        how = "ECONNRESET"
    seen.put(how)


def leaves_unread(client):
    """Closes when there is something to read."""
    select.select([client], [], [], 10)
    client.sendall(b"bye")


def tells(client):
    client.sendall(seen.get(timeout=20).encode())


def never_reads(_client):
    time.sleep(1000)


def count(more):
    global opened
    with lock:
        opened += more


@contextlib.contextmanager
def counted():
    count(1)
    try:
        yield
    finally:
        count(-1)


os.makedirs(DIR, exist_ok=True)
os.chmod(DIR, 0o755)
threading.stack_size(256 << 10)
for answer in (sums, counts, mortal, watch, talks, leaves_unread, tells, never_reads):
    threading.Thread(target=serve, args=(listen(answer.__name__), answer, counted), daemon=True).start()
print("READY", flush=True)
echo_many(listen("echo"))
