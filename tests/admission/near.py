"""Clients of tests/admission.rs, under LD_PRELOAD=libudsproxy.so: `near.py PROMISE ARG ...`."""
import errno
import os
import select
import socket
import sys
import threading
import time


def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(path)
    return sock


def beats(path, seconds):
    """One connection that speaks all the time, and others that come meanwhile: prints the longest wait of the first."""
    sock, stop, worst, failed = connect(path), time.monotonic() + float(seconds), 0, []

    def come():
        while time.monotonic() < stop:
            try:
                connect(path).close()
            except OSError as e:
                failed.append(errno.errorcode[e.errno] if e.errno else str(e))
            time.sleep(0.2)

    others = threading.Thread(target=come)
    others.start()
    while time.monotonic() < stop:
        begun = time.monotonic()
        sock.sendall(b"x")
        assert sock.recv(1) == b"x", "the stream ended"
        worst = max(worst, time.monotonic() - begun)
        time.sleep(0.01)
    others.join()
    print(f"WORST {worst:.3f} FAILED {len(failed)} {failed[:3]}")


def hold(path, count):
    """So many connections that say nothing; one that is closed is made anew at once."""
    poll, all = select.poll(), {}

    def come():
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        # A full backlog is tried again with the next turn.
        if sock.connect_ex(path) == 0:
            all[sock.fileno()] = sock
            poll.register(sock, select.POLLIN | select.POLLHUP)

    print("HOLDING", flush=True)
    while True:
        while len(all) < int(count):
            before = len(all)
            come()
            if len(all) == before:
                break
        for fd, _ in poll.poll(20):
            poll.unregister(fd)
            all.pop(fd).close()


def connects(path, count):
    """How long a connect takes, nine times out of ten."""
    took = []
    for _ in range(int(count)):
        begun = time.monotonic()
        connect(path).close()
        took.append(time.monotonic() - begun)
    took.sort()
    print(f"P90 {took[len(took) * 9 // 10]:.3f} WORST {took[-1]:.3f}")


def until_full(path):
    """Connections until one fails: how many there were, and which errno it met and ten further ones, while others that say
    nothing take a few more fds of the daemon's."""
    held, met = [], []
    while len(met) < 10 and len(held) < 500:
        silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(len(met) % 3)]
        for sock in silent:
            sock.connect("/run/farside/uds.sock")
        time.sleep(0.05 * len(silent))
        try:
            held.append(connect(path))
        except OSError as e:
            met.append(errno.errorcode.get(e.errno, str(e)))
        for sock in silent:
            sock.close()
    print("HELD", len(held), "MET", *sorted(set(met)))


def serve(path):
    """Echoes, for whoever comes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o777)
    listener.listen(4096)
    print("READY", flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=echo, args=(sock,), daemon=True).start()


def echo(sock):
    try:
        while data := sock.recv(4096):
            sock.sendall(data)
    except OSError:
        pass


globals()[sys.argv[1]](*sys.argv[2:])
