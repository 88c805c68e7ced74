"""The clients of tests/uds_records.rs: `records_near.py PROMISE DIR`, under LD_PRELOAD=libudsproxy.so."""
import array
import errno
import logging
import logging.handlers
import os
import select
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "common"))
from promise import ready, same  # noqa: E402

DIR = sys.argv[2]
SO_SNDBUFFORCE = 32
SEQ, DGRAM = socket.SOCK_SEQPACKET, socket.SOCK_DGRAM


def unix(kind, own=None):
    sock = socket.socket(socket.AF_UNIX, kind)
    if own is not None:
        sock.bind(own)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, b"\x14" + bytes(15))
    return sock


def ask(sock, record):
    sock.send(record)
    if not sock.getblocking():
        assert select.select([sock], [], [], 20)[0], "no answer"
    same(sock.recv(2 << 20), record, f"a record of {len(record)}")


def told(count):
    with unix(SEQ) as sock:
        sock.connect(f"{DIR}/logged")
        sock.send(b"%d" % count)
        records = [sock.recv(1 << 20) for _ in range(count)]
        sock.send(b"thanks")
        return records


def seqpacket_records_stay_apart():
    for name in (f"{DIR}/seq", "\0farside-seq"):
        for blocking in (True, False):
            with unix(SEQ) as sock:
                sock.setblocking(blocking)
                sock.connect(name)
                same(sock.getpeername(), name if name[0] == "/" else name.encode(), "getpeername")
                for size in (1, 100, 16 << 10, 65_537, 200_000):
                    ask(sock, os.urandom(size))
    with unix(SEQ) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 << 20)
        sock.connect(f"{DIR}/seq")
        ask(sock, os.urandom(1 << 20))
        # Many at once, and every one by itself.
        for n in range(50):
            sock.send(b"%d" % n * (n + 1))
        for n in range(50):
            same(sock.recv(1000), b"%d" % n * (n + 1), "one of many")
        sock.shutdown(socket.SHUT_WR)
        same(sock.recv(10), b"", "the end")


def records_stay_apart_where_the_server_speaks_first():
    for _ in range(60):
        with unix(SEQ) as sock:
            sock.connect(f"{DIR}/speaks")
            got = [sock.recv(1 << 20) for _ in range(5)]
            same([len(record) for record in got], [3, 0, 3, 40_000, 3], "records")
            same(got[0] + got[2] + got[4], b"AAABBBCCC", "records")
            sock.send(b"thanks")


def datagrams_are_answered():
    own = f"{DIR}/own"
    for bound in (own, "\0farside-own", ""):
        for name in (f"{DIR}/dgram", "\0farside-dgram"):
            # An abstract name is a path where it stands for a far socket.
            shown = name.replace("\0", "@")
            with unix(DGRAM, bound) as sock:
                sock.sendto(b"to a name", name)
                same(sock.recvfrom(100), (b"to a name", shown), "an answer")
                sock.sendmsg([b"in ", b"parts"], [], 0, name)
                same(sock.recvfrom(100), (b"in parts", shown), "an answer")
                sock.connect(name)
                same(sock.getpeername(), shown, "getpeername")
                for size in (0, 1, 100_000):
                    ask(sock, os.urandom(size))
                sock.setblocking(False)
                ask(sock, b"without waiting")
            if os.path.exists(own):
                os.unlink(own)


def datagrams_keep_their_order():
    with unix(DGRAM) as sock:
        for n in range(2000):
            sock.sendto(b"%d" % n, f"{DIR}/log")
    for n, record in enumerate(told(2000)):
        same(record, b"%d" % n, "what was logged next")


def records_sent_just_before_a_close_arrive():
    with unix(SEQ) as sock:
        sock.connect(f"{DIR}/counts")
        sock.send(b"2000")
        for n in range(2000):
            same(sock.recv(100), b"%d" % n, "the next record")
        same(sock.recv(100), b"", "the end")


def fds_come_with_their_record():
    for kind, name in ((SEQ, "seq"), (DGRAM, "dgram")):
        with unix(kind, "" if kind == DGRAM else None) as sock:
            if kind == SEQ:
                sock.connect(f"{DIR}/{name}")
            reader, writer = os.pipe()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))]
            sock.sendmsg([b"a record"], rights, 0, *([f"{DIR}/{name}"] if kind == DGRAM else []))
            os.close(writer)
            same(sock.recv(100), b"a record", "the answer")
            with os.fdopen(reader, "rb") as file:
                same(file.read(), b"a word", "through the pipe")


def a_syslog_over_there_hears_programs_here():
    logger = logging.getLogger("far")
    logger.addHandler(logging.handlers.SysLogHandler(address=f"{DIR}/log"))
    logger.warning("from python")
    subprocess.run(["logger", "--socket-errors=on", "-u", f"{DIR}/log", "from logger"], check=True)
    first, second = told(2)
    assert b"from python" in first and b"from logger" in second, (first, second)


def children_and_threads_do_it_too():
    def one():
        with unix(DGRAM, "") as sock:
            sock.sendto(b"hello", f"{DIR}/dgram")
            same(sock.recv(10), b"hello", "an answer")
        with unix(SEQ) as sock:
            sock.connect(f"{DIR}/seq")
            ask(sock, b"hello")
        return True

    pid = os.fork()
    if not pid:
        os._exit(0 if one() else 1)
    same(os.waitpid(pid, 0)[1], 0, "a forked child")
    words = ["python3", __file__, "seqpacket_records_stay_apart", DIR]
    pid = os.posix_spawn(sys.executable, words, os.environ)
    same(os.waitpid(pid, 0)[1], 0, "a spawned child")
    gate = threading.Barrier(32)
    good = []

    def wait_and_do():
        gate.wait()
        good.append(one())

    threads = [threading.Thread(target=wait_and_do) for _ in range(32)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    same(len(good), 32, "threads that went well")


def a_server_that_was_killed_refuses():
    socks = []
    for name in ("dgram", "log"):
        sock = unix(DGRAM)
        sock.connect(f"{DIR}/{name}")
        sock.send(b"x")
        socks.append(sock)
    posting = unix(DGRAM)
    posting.sendto(b"x", f"{DIR}/log")
    packets = unix(SEQ)
    packets.connect(f"{DIR}/seq")
    ready()

    def refused(send):
        begun = time.monotonic()
        while time.monotonic() - begun < 10:
            try:
                send()
            except ConnectionRefusedError:
                return True
            time.sleep(0.05)
        return False

    for sock in socks:
        assert refused(lambda: sock.send(b"x")), "a connected socket"
    assert refused(lambda: posting.sendto(b"x", f"{DIR}/log")), "by its name"
    try:
        same(packets.recv(10), b"", "a packet")
    except ConnectionResetError:
        pass


def sockets_come_and_go():
    for _ in range(10):
        socks = [unix(DGRAM, "" if n % 2 else None) for n in range(40)]
        for n, sock in enumerate(socks):
            if n % 4 < 2:
                sock.connect(f"{DIR}/dgram")
                sock.send(b"x")
            else:
                sock.sendto(b"x", f"{DIR}/dgram")
        for sock in socks:
            sock.close()


def an_exported_socket_needs_no_library(path, expected):
    assert "LD_PRELOAD" not in os.environ
    with unix(socket.SOCK_STREAM) as sock:
        if expected != "OK":
            same(errno.errorcode[sock.connect_ex(path)], expected, path)
            return
        sock.connect(path)
        ask(sock, b"hello")


if __name__ == "__main__" or len(sys.argv) > 2:
    globals()[sys.argv[1]](*sys.argv[3:])
