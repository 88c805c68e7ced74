"""The clients of tests/endurance.rs: `near.py PROMISE DIR [ARG ...]`, under LD_PRELOAD=libudsproxy.so.

A promise is a function below. One that needs something done or measured meanwhile says a word and waits for a line.
"""
import hashlib
import os
import random
import signal
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "common"))
from promise import exactly, ready  # noqa: E402
from silent_fs import SilentFs  # noqa: E402

DIR = sys.argv[2]
# A private socket a connection in the daemon, made by one thread an ask.
AT_ONCE = 16


def connect(name):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(f"{DIR}/{name}")
    sock.settimeout(20)
    return sock


def ask(sock, text):
    sock.sendall(text)
    assert exactly(sock, len(text)) == text, "another answer"


def told(name="tells"):
    with connect(name) as sock:
        return sock.recv(1000).decode()


def side_by_side(count, one):
    """one(n) for n below count, AT_ONCE at a time."""
    numbers, failed = iter(range(count)), []

    def work():
        try:
            for n in numbers:
                one(n)
        except Exception as e:
            failed.append(repr(e))

    threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def hold(count):
    socks, lock = [], threading.Lock()

    def one(n):
        sock = connect("echo")
        with lock:
            socks.append(sock)

    begun = time.monotonic()
    side_by_side(int(count), one)
    took = time.monotonic() - begun
    print(f"{len(socks)} connections in {took:.1f} s", flush=True)
    ready("HELD")
    for n, sock in enumerate(socks):
        ask(sock, b"still %d" % n)
    ready("ANSWERED")
    for sock in socks:
        sock.close()
    ready("CLOSED")


def pass_silent_files(messages):
    """More files that can't be closed than there are helpers, closers and places for them; others go on."""
    fs = SilentFs()
    refused = 0
    for n in range(int(messages)):
        sock = connect("echo")
        # Also behind bytes that are read without a look ahead.
        for i in range(n % 2 * 40):
            ask(sock, b"%d" % i)
        try:
            socket.send_fds(sock, [b"x"], [fs.file] * (1 + n % 5))
            refused += sock.recv(10) == b""
        except (ConnectionResetError, BrokenPipeError):
            refused += 1
        sock.close()
    assert refused == int(messages), f"{refused} refused"
    with connect("echo") as sock:
        ask(sock, b"others go on")
    ready("PASSED")
    churn("200")
    print(f"{refused} refused; not answered: {fs.end()}")
    ready("ENDED")


def churn(count):
    def one(n):
        with connect("echo") as sock:
            ask(sock, b"%d" % n * 10)

    begun = time.monotonic()
    side_by_side(int(count), one)
    print(f"{count} in {time.monotonic() - begun:.1f} s")


def at_random(seed):
    """Forty programs with 25 connections each; ten of them are killed while they are at it."""
    rng = random.Random(int(seed))
    print(f"seed {seed}", flush=True)
    fates = [n < 10 for n in range(40)]
    rng.shuffle(fates)
    children = {}
    while fates or children:
        while fates and len(children) < 8:
            doomed, own = fates.pop(), rng.randrange(1 << 30)
            child = os.fork()
            if child == 0:
                exchange(random.Random(own), 1_000_000 if doomed else 25)
            children[child] = time.monotonic() + rng.uniform(0.1, 0.6) if doomed else None
        time.sleep(0.01)
        for child in [c for c, end in children.items() if end and end < time.monotonic()]:
            os.kill(child, signal.SIGKILL)
            children[child] = None
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9, "it had ended before"
            del children[child]
        for child in list(children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0, f"a program failed: {status}"
                del children[child]


def exchange(rng, count):
    try:
        for _ in range(count):
            with connect("sums") as sock:
                for _ in range(rng.randrange(3)):
                    send_and_check(sock, rng.randbytes(rng.choice((0, 1, 100, 5000, 70_000, 300_000))))
        os._exit(0)
    except BaseException as e:
        print(repr(e), file=sys.stderr, flush=True)
        os._exit(1)


def send_and_check(sock, text):
    def send():
        sock.sendall(struct.pack("<Q", len(text)))
        sock.sendall(text)

    sending = threading.Thread(target=send)
    sending.start()
    assert exactly(sock, len(text)) == text, "other bytes came back"
    assert exactly(sock, 32) == hashlib.sha256(text).digest(), "other bytes arrived"
    sending.join()


def ends_show_at_once():
    for _ in range(5):
        with connect("mortal") as sock:
            sock.sendall(b"die")
            died = struct.unpack("<d", exactly(sock, 8))[0]
            try:
                assert sock.recv(1) == b"", "bytes of a dead server"
                how = "EOF"
            except ConnectionResetError:
                how = "ECONNRESET"
            took = time.monotonic() - died
            print(f"a killed server: {how} after {took * 1e3:.1f} ms")
            assert took < 1, took
        child = os.fork()
        if child == 0:
            sock = connect("watch")
            ask_time = struct.pack("<d", time.monotonic())
            sock.sendall(ask_time)
            os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
        took, how = told().split()
        print(f"a killed client: {how} after {float(took) * 1e3:.1f} ms")
        assert float(took) < 1, took


def unread_is_a_reset():
    for _ in range(5):
        sock = connect("talks")
        # It has come, and is not read.
        time.sleep(0.2)
        sock.close()
        assert (how := told()) == "ECONNRESET", f"the server saw {how}"
        with connect("leaves_unread") as sock:
            sock.sendall(b"x" * 1000)
            try:
                got = sock.recv(3)
                assert got == b"bye", got
                got = sock.recv(1)
                raise AssertionError(f"no reset, but {got!r}")
            except ConnectionResetError:
                pass


def stuck():
    """One connection that nobody reads, full; then it waits."""
    sock = connect("never_reads")
    sock.setblocking(False)
    sent, quiet = 0, time.monotonic()
    while time.monotonic() - quiet < 0.5:
        try:
            sent += sock.send(b"x" * 65536)
            quiet = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    print(f"{sent} bytes taken")
    ready("STUCK")


def opened():
    print("NOW", told("counts"))


globals()[sys.argv[1]](*sys.argv[3:])
