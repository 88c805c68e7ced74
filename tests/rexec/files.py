"""Regular files as a command's stdin, stdout and other fds: `files.py DIR ...`, with REXEC and CMD_NET_ADDR set.

Each DIR is of another file system. A file is read once, from its position to its end, and written where a local program
would write; afterwards the position that the caller shares with the command is where it would be.
"""
import os
import subprocess
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "common"))
from promise import same  # noqa: E402

REXEC = os.environ["REXEC"]
ENGINES = ("io_uring", "io_uring-basic", "epoll")
PIPE = subprocess.PIPE
NOISE = os.urandom(3 << 20)
ALIGNED = 8192


def rexec(engine, *argv, timeout=60, **options):
    env = {**os.environ, "FARSIDE_ENGINE": engine}
    return subprocess.run([REXEC, *argv], env=env, timeout=timeout, **options)


def position(fd):
    return os.lseek(fd, 0, os.SEEK_CUR)


class Place:
    def __init__(self, directory, engine):
        self.path = os.path.join(directory, f"file-{engine}")
        self.engine, self.what = engine, f"{engine}, {directory}"

    def file(self, content, flags, offset=0):
        with open(self.path, "wb") as file:
            file.write(content)
        fd = os.open(self.path, flags)
        os.lseek(fd, offset, os.SEEK_SET)
        return fd

    def content(self):
        with open(self.path, "rb") as file:
            return file.read()

    # ---- read ------------------------------------------------------------------------------------------------------

    def reads(self, what, content, flags, offset=0):
        what = f"{self.what}: {what}"
        fd = self.file(content, flags, offset)
        # Bounded: one that reads for ever must not fill this machine's memory.
        script = f"head -c {len(content) + 60}"
        done = rexec(self.engine, "sh", "-c", script, stdin=fd, stdout=PIPE)
        same((done.returncode, done.stdout), (0, content[offset:]), what)
        same(position(fd), max(offset, len(content)), f"{what}: the position afterwards")
        os.lseek(fd, offset, os.SEEK_SET)
        done = rexec(self.engine, "sh", "-c", f"{script} <&{fd}", stdin=subprocess.DEVNULL, stdout=PIPE, pass_fds=[fd])
        if flags & os.O_ACCMODE == os.O_RDONLY:
            same((done.returncode, done.stdout), (0, content[offset:]), f"{what}, as fd {fd}")
        os.close(fd)

    def grows_while_it_is_read(self):
        # More than fits on the way to a command that does not read yet.
        begin, more = NOISE, b"more, written while the file is read"
        fd = self.file(begin, os.O_RDONLY)
        with open(self.path, "ab", buffering=0) as writer:
            child = subprocess.Popen([REXEC, "sh", "-c", "echo; sleep 0.3; cat"], stdin=fd, stdout=PIPE,
                                     env={**os.environ, "FARSIDE_ENGINE": self.engine})
            same(child.stdout.read(1), b"\n", f"{self.what}: it runs")
            writer.write(more)
            out, _ = child.communicate(timeout=60)
        assert out == begin + more, f"{self.what}: grown while read: {len(out)} of {len(begin) + len(more)} bytes"
        os.close(fd)

    # ---- written ---------------------------------------------------------------------------------------------------

    def writes(self, what, before, flags, offset, script, after, where):
        what = f"{self.what}: {what}"
        fd = self.file(before, flags, offset)
        done = rexec(self.engine, "sh", "-c", script, stdin=subprocess.DEVNULL, stdout=fd, stderr=fd)
        same(done.returncode, 0, what)
        same(self.content(), after, what)
        same(position(fd), where, f"{what}: the position afterwards")
        os.close(fd)

    def takes_turns_with_its_caller(self):
        with open(self.path, "wb"):
            pass
        lines = 'exec >"$1"; echo one; "$0" sh -c "echo two; sleep 0.05; echo three"; echo four; "$0" echo five'
        subprocess.run(["sh", "-c", lines, REXEC, self.path], check=True, timeout=60,
                       env={**os.environ, "FARSIDE_ENGINE": self.engine})
        same(self.content(), b"one\ntwo\nthree\nfour\nfive\n", f"{self.what}: turns")

    def two_commands_write_to_one_open_file(self):
        fd = self.file(b"", os.O_WRONLY)
        size = 400_000
        script = "head -c %d /dev/zero | tr '\\0' %s"
        both = [threading.Thread(target=rexec, args=(self.engine, "sh", "-c", script % (size, one)), kwargs={"stdout": fd})
                for one in "ab"]
        [one.start() for one in both]
        [one.join() for one in both]
        content = self.content()
        same((len(content), content.count(b"a"), content.count(b"b")), (2 * size, size, size), f"{self.what}: two writers")
        os.close(fd)

    def all(self):
        self.reads("ten bytes", b"0123456789", os.O_RDONLY)
        self.reads("nothing", b"", os.O_RDONLY)
        self.reads("much", NOISE, os.O_RDONLY)
        self.reads("from the middle", b"0123456789", os.O_RDONLY, 4)
        self.reads("at the end", b"0123456789", os.O_RDONLY, 10)
        self.reads("behind the end", b"0123456789", os.O_RDONLY, 20)
        self.reads("open for appending too", b"0123456789", os.O_RDWR | os.O_APPEND, 4)
        self.grows_while_it_is_read()
        lines = "for i in 1 2 3 4 5; do echo $i; sleep 0.02; done"
        self.writes("lines", b"", os.O_WRONLY, 0, lines, b"1\n2\n3\n4\n5\n", 10)
        self.writes("both outputs", b"", os.O_WRONLY, 0, "echo a; echo b >&2; echo c", b"a\nb\nc\n", 6)
        self.writes("over what is there", b"x" * 20, os.O_RDWR, 3, lines, b"xxx1\n2\n3\n4\n5\nxxxxxxx", 13)
        self.writes("appended", b"x" * 20, os.O_WRONLY | os.O_APPEND, 0, lines, b"x" * 20 + b"1\n2\n3\n4\n5\n", 30)
        self.writes("much", b"", os.O_WRONLY, 0, "head -c 3000000 /dev/zero", bytes(3_000_000), 3_000_000)
        self.takes_turns_with_its_caller()
        self.two_commands_write_to_one_open_file()
        try:
            os.close(self.file(b"", os.O_RDONLY | os.O_DIRECT))
        except OSError:
            print(f"{self.what}: no O_DIRECT there")
            return
        self.reads("O_DIRECT", NOISE[:100_001], os.O_RDONLY | os.O_DIRECT, ALIGNED)
        self.writes("lines, O_DIRECT", bytes(ALIGNED), os.O_RDWR | os.O_DIRECT, ALIGNED, lines,
                    bytes(ALIGNED) + b"1\n2\n3\n4\n5\n", ALIGNED + 10)


for directory in sys.argv[1:]:
    for engine in ENGINES:
        Place(directory, engine).all()
print("KEPT")
