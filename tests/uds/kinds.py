"""Every kind of fd that crosses: `kinds.py serve` on the host, `kinds.py pass` on the DPU, which has /home/VMs of the host
mounted on /mnt/there. Each kind is passed, used over there, and what was seen comes back."""
import array
import errno
import fcntl
import json
import os
import pty
import select
import socket
import stat
import struct
import sys
import termios
import threading

SOCKET = "/var/tmp/kinds"
GIVER = "/var/tmp/gives"
ADD_SEALS, GET_SEALS, SHRINK, WRITE = 1033, 1034, 2, 8
GET_API_VERSION = 0xAE00
TUNSETIFF, TUNGETIFF, TAP_NO_PI = 0x400454CA, 0x800454D2, 0x1002


def receive(sock):
    text, ancillary, flags, _ = sock.recvmsg(1000, socket.CMSG_SPACE(4 * 253))
    assert not flags & socket.MSG_CTRUNC
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data)
    return text.decode(), list(fds)


def send(sock, text, fds):
    sock.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def same(got, expected, what):
    assert got == expected, f"{what}: {got!r}, not {expected!r}"


# ---- over there ---------------------------------------------------------------------------------------------------


def look_at(fd):
    seen = os.fstat(fd)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    return {
        "mode": stat.S_IFMT(seen.st_mode),
        "rdev": seen.st_rdev,
        "path": os.readlink(f"/proc/self/fd/{fd}"),
        "access": flags & os.O_ACCMODE,
        "append": bool(flags & os.O_APPEND),
    }


def file(fd):
    return look_at(fd) | {"at": os.lseek(fd, 0, os.SEEK_CUR), "rest": os.read(fd, 100).decode()}


def log(fd):
    os.write(fd, b"host\n")
    return look_at(fd)


def directory(fd):
    return look_at(fd) | {"names": sorted(os.listdir(fd))}


def memory(fd):
    return {"seals": fcntl.fcntl(fd, GET_SEALS), "text": os.pread(fd, 100, 0).decode(), "at": os.lseek(fd, 0, os.SEEK_CUR)}


def terminal(fd):
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    os.write(fd, b"prompt> ")
    return {"tty": os.isatty(fd), "size": [rows, columns], "line": os.read(fd, 100).decode()}


def device(fd):
    return look_at(fd)


def kvm(fd):
    return look_at(fd) | {"version": fcntl.ioctl(fd, GET_API_VERSION, 0)}


def tap(fd):
    name = fcntl.ioctl(fd, TUNGETIFF, bytes(40))[:16].rstrip(b"\0").decode()
    with open(f"/sys/class/net/{name}/master/uevent") as uevent:
        return {"name": name, "bridge": "INTERFACE=br0" in uevent.read()}


def fifo(fd):
    os.write(fd, b"into the fifo")
    return {"mode": stat.S_IFMT(os.fstat(fd).st_mode)}


def listener(fd):
    with socket.socket(fileno=os.dup(fd)) as listening:
        client, _ = listening.accept()
        with client:
            client.sendall(client.recv(100).upper())
    return {"listens": True}


def monitor(fd):
    """A server like QEMU's monitor: one client, messages with fds, an answer to each with an fd of its own."""
    with socket.socket(fileno=os.dup(fd)) as listening:
        client, _ = listening.accept()
    with client:
        while True:
            text, fds = receive(client)
            if not text:
                return {"over": True}
            uses = [use(one) for one in fds]
            [os.close(one) for one in fds]
            event = os.eventfd(0)
            send(client, json.dumps([text, uses]), [event])
            os.close(event)


def use(fd):
    """The errno of a use, or 0."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL))
    except OSError as e:
        return e.errno
    return 0


def records(fd):
    with socket.socket(fileno=os.dup(fd)) as sock:
        kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        got = [len(sock.recv(1000)) for _ in range(2)]
        sock.send(b"one")
        sock.send(b"two!")
    return {"kind": kind, "got": got}


def answer(client):
    with client:
        what, fds = receive(client)
        if not fds:
            return
        found = globals()[what.split()[0]](fds[0])
        client.sendall(json.dumps(found).encode())
        client.shutdown(socket.SHUT_WR)
        # What was passed lives until the other side has seen enough.
        client.recv(1)
        for fd in fds:
            os.close(fd)


def give(client):
    """Files of the host, for the DPU."""
    with client:
        inside = os.open("/home/VMs/disk", os.O_RDWR)
        os.lseek(inside, 5, os.SEEK_SET)
        send(client, "file", [inside, os.open("/home/VMs", os.O_RDONLY | os.O_DIRECTORY)])
        client.recv(1)


def listen(path, serve):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(16)

    def run():
        while True:
            client, _ = listening.accept()
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()


def serve():
    listen(SOCKET, answer)
    listen(GIVER, give)
    print("READY", flush=True)
    threading.Event().wait()


# ---- here ---------------------------------------------------------------------------------------------------------


def connect(path=SOCKET):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(path)
    return sock


def told(sock):
    parts = []
    while part := sock.recv(1000):
        parts.append(part)
    return json.loads(b"".join(parts))


def passed(what, fd, meanwhile=lambda: None):
    with connect() as sock:
        send(sock, what, [fd])
        os.close(fd)
        meanwhile()
        return told(sock)


def refused(what, fd):
    """Its stream ends: nothing was delivered without its fd."""
    with connect() as sock:
        send(sock, what, [fd])
        os.close(fd)
        try:
            same(sock.recv(100), b"", what)
        except ConnectionResetError:
            pass


def files_and_directories():
    fd = os.open("/mnt/there/disk", os.O_RDWR)
    os.lseek(fd, 5, os.SEEK_SET)
    seen = passed("file", fd)
    same((seen["path"], seen["at"], seen["rest"], seen["access"]), ("/home/VMs/disk", 5, "56789", os.O_RDWR), "a file")
    fd = os.open("/mnt/there/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, b"dpu\n")
    seen = passed("log", fd)
    same((seen["path"], seen["append"], seen["access"]), ("/home/VMs/log", True, os.O_WRONLY), "a log")
    with open("/mnt/there/log") as text:
        same(text.read(), "dpu\nhost\n", "what both have written")
    # Renamed after it was opened, and gone; its giver closes it at once, and that travels by another link.
    for n in range(40):
        how = ("renamed", "gone")[n % 2]
        with open(f"/mnt/there/{how}", "w") as text:
            text.write(how)
        fd = os.open(f"/mnt/there/{how}", os.O_RDONLY)
        if how == "renamed":
            os.rename("/mnt/there/renamed", "/mnt/there/elsewhere")
        else:
            os.unlink("/mnt/there/gone")
        same(passed("file", fd)["rest"], how, f"a file that is {how}")
    seen = passed("directory", os.open("/mnt/there", os.O_RDONLY | os.O_DIRECTORY))
    same((seen["path"], stat.S_ISDIR(seen["mode"]), "disk" in seen["names"]), ("/home/VMs", True, True), "a directory")
    refused("file", os.open("/etc/hostname", os.O_RDONLY))


def files_of_the_host():
    with connect(GIVER) as sock:
        what, fds = receive(sock)
        same((what, len(fds)), ("file", 2), "what was given")
        seen = file(fds[0])
        same((seen["path"], seen["at"], seen["rest"]), ("/mnt/there/disk", 5, "56789"), "a file of the host")
        seen = directory(fds[1])
        same((seen["path"], "disk" in seen["names"]), ("/mnt/there", True), "a directory of the host")


def memory_with_its_seals():
    fd = os.memfd_create("shared", os.MFD_ALLOW_SEALING)
    os.write(fd, b"what is in it")
    os.lseek(fd, 3, os.SEEK_SET)
    fcntl.fcntl(fd, ADD_SEALS, SHRINK | WRITE)
    same(passed("memory", fd), {"seals": SHRINK | WRITE, "text": "what is in it", "at": 3}, "a memfd")


def terminals():
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))

    def meanwhile():
        prompt = b""
        while not prompt.endswith(b"> "):
            prompt += os.read(master, 100)
        os.write(master, b"a line\n")

    seen = passed("terminal", slave, meanwhile)
    same(seen, {"tty": True, "size": [33, 101], "line": "a line\n"}, "a terminal")


def devices():
    for name in ("null", "zero", "full", "random", "urandom"):
        fd = os.open(f"/dev/{name}", os.O_RDWR if name != "random" else os.O_RDONLY)
        rdev = os.fstat(fd).st_rdev
        seen = passed("device", fd)
        same((stat.S_ISCHR(seen["mode"]), seen["rdev"], seen["path"]), (True, rdev, f"/dev/{name}"), name)


def kvm_by_policy():
    same(passed("kvm", os.open("/dev/kvm", os.O_RDWR))["version"], 12, "KVM_GET_API_VERSION")


def taps_by_policy():
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"vnet7", TAP_NO_PI))
    same(passed("tap", fd), {"name": "vnet7", "bridge": True}, "a tap")


def fifos():
    os.mkfifo("/tmp/kinds.fifo")
    reader = os.open("/tmp/kinds.fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("/tmp/kinds.fifo", os.O_WRONLY)
    os.set_blocking(reader, True)
    same(stat.S_ISFIFO(passed("fifo", writer)["mode"]), True, "a fifo")
    same(os.read(reader, 100), b"into the fifo", "through it")


def listeners():
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("/tmp/kinds.listener")
    listening.listen(4)
    # As libvirt does with QEMU's monitor: the client is there before the listener crosses.
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect("/tmp/kinds.listener")
    client.sendall(b"early")
    same(passed("listener", listening.detach()), {"listens": True}, "a listener")
    same(client.recv(100), b"EARLY", "its client's answer")


def a_listeners_conversation_outlives_a_refused_fd():
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("/tmp/kinds.monitor")
    listening.listen(4)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect("/tmp/kinds.monitor")

    def talk():
        tap = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"vnet8", TAP_NO_PI))
        null = os.open("/dev/null", os.O_RDWR)
        event = os.eventfd(0)
        for text, fds, wanted in (("tap", [tap], [errno.EBADF]), ("none", [], []), ("event", [null, event], [0, errno.EBADF]),
                                  ("both", [event, tap, null], [errno.EBADF, errno.EBADF, 0])):
            send(client, text, fds) if fds else client.sendall(text.encode())
            answer, back = receive(client)
            same((json.loads(answer), [use(fd) for fd in back]), ([text, wanted], [errno.EBADF]), text)
            [os.close(fd) for fd in back]
        client.shutdown(socket.SHUT_WR)

    same(passed("monitor", listening.detach(), talk), {"over": True}, "a monitor")


def sockets_of_records():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    ours.send(b"12345")
    ours.send(b"678")
    same(passed("records", theirs.detach()), {"kind": socket.SOCK_SEQPACKET, "got": [5, 3]}, "records")
    same([ours.recv(100), ours.recv(100)], [b"one", b"two!"], "records back")
    # A datagram socket has no end that the other machine could see.
    refused("records", socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[1].detach())


def what_cannot_be_made_again_is_refused():
    refused("device", os.eventfd(0))
    with select.epoll() as epoll:
        refused("device", os.dup(epoll.fileno()))
    with socket.socket(socket.AF_INET) as inet:
        refused("device", os.dup(inet.fileno()))
    # And the next one is none the worse.
    devices()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    print("KEPT")
