"""`near.py DIR SECONDS`, under LD_PRELOAD=libudsproxy.so: streams, records and fds, each checked to the byte.

Prints READY, then a ledger: so much was said, so much came back, so many fds, and the longest wait for an answer.
"""
import faulthandler
import os
import random
import socket
import sys
import threading
import time

DIR, SECONDS = sys.argv[1], float(sys.argv[2])
STREAMS, RECORDS = 6, 3
ledger = {"bytes": 0, "records": 0, "fds": 0}
lock = threading.Lock()
stalls, failures = [], []


def exactly(sock, count):
    parts = []
    while count:
        part = sock.recv(min(count, 1 << 16))
        if not part:
            raise EOFError(f"ended with {count} bytes to come")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def note(what, count, begun):
    with lock:
        ledger[what] += count
        stalls.append(time.monotonic() - begun)


def stream(seed, end):
    rng = random.Random(seed)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(f"{DIR}/echo")
    passed = 0
    while time.monotonic() < end:
        data = rng.randbytes(rng.choice((1, 100, 5000, 200_000)))
        begun = time.monotonic()
        if rng.random() < 0.2:
            reader, writer = os.pipe()
            data = data[:60_000]
            socket.send_fds(sock, [data], [writer])
            os.close(writer)
            if exactly(sock, len(data)) != data:
                raise ValueError("other bytes came back")
            with os.fdopen(reader, "rb") as pipe:
                if pipe.read() != b"fd %d" % passed:
                    raise ValueError(f"fd {passed} is another")
            passed += 1
            note("fds", 1, begun)
            continue
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        if exactly(sock, len(data)) != data:
            raise ValueError("other bytes came back")
        sender.join()
        note("bytes", len(data), begun)
    sock.shutdown(socket.SHUT_WR)
    if sock.recv(1):
        raise ValueError("bytes that nobody has said")


def records(seed, end):
    rng = random.Random(seed)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(f"{DIR}/records")
    while time.monotonic() < end:
        data = rng.randbytes(rng.randint(1, 60_000))
        begun = time.monotonic()
        sock.send(data)
        if sock.recv(1 << 16) != data:
            raise ValueError("another record came back")
        note("records", 1, begun)


def run(what, seed, end):
    try:
        what(seed, end)
    except Exception as e:  # noqa: BLE001
        failures.append(f"{what.__name__} {seed}: {e!r}")


end = time.monotonic() + SECONDS
# Where everybody is, if somebody waits for ever.
faulthandler.dump_traceback_later(SECONDS + 15, exit=True)
work = [(stream, seed) for seed in range(STREAMS)] + [(records, 100 + seed) for seed in range(RECORDS)]
threads = [threading.Thread(target=run, args=(what, seed, end)) for what, seed in work]
for thread in threads:
    thread.start()
print("READY", flush=True)
for thread in threads:
    thread.join()
print(*failures, sep="\n")
print(f"LEDGER {ledger['bytes']} bytes {ledger['records']} records {ledger['fds']} fds", end=" ")
print(f"longest {max(stalls):.2f} failures {len(failures)}", flush=True)
