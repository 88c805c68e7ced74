"""The calling machine's side of tests/rexec.rs: `near.py PROMISE [ARG ...]`, with REXEC and CMD_NET_ADDR set.

A promise is a function below; what it asserts is what a program that calls rexec may rely on. A promise that needs
something done to the lab says a word on stdout and waits for a line on stdin.
"""
import fcntl
import hashlib
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "common"))
from promise import ready, same  # noqa: E402

REXEC = os.environ["REXEC"]
PYTHON = "/usr/bin/python3"
PIPE = subprocess.PIPE
MIB = 1 << 20


def start(*argv, prefix=(), **options):
    return subprocess.Popen([*prefix, REXEC, *argv], **options)


def rexec(*argv, prefix=(), stdin=None, timeout=60, **options):
    """(status, stdout, stderr), all bytes."""
    if isinstance(stdin, bytes):
        options["input"] = stdin
    else:
        options["stdin"] = stdin if stdin is not None else subprocess.DEVNULL
    done = subprocess.run([*prefix, REXEC, *argv], stdout=PIPE, stderr=PIPE, timeout=timeout, **options)
    return done.returncode, done.stdout, done.stderr


def one_line(text, what):
    assert text.count(b"\n") == 1 and text.endswith(b"\n"), f"{what}: one line was to be said, not {text!r}"


def noise(seed, size):
    print(f"seed {seed}", flush=True)
    return random.Random(seed).randbytes(size)


def each(work, count, threads=8):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(count)))


# ---- status -------------------------------------------------------------------------------------------------------


def the_exit_status_is_the_commands():
    def code(n):
        same(rexec("sh", "-c", f"exit {n}"), (n, b"", b""), f"exit {n}")

    each(code, 256)


def death_by_signal_n_is_128_and_n():
    for n in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGABRT,
              signal.SIGSEGV, signal.SIGPIPE):
        status, out, err = rexec("sh", "-c", f"ulimit -c 0; kill -{int(n)} $$")
        same((status, out, err), (128 + n, b"", b""), f"death by {n.name}")


def what_cannot_be_run_is_127_or_126_with_one_line():
    plain = tempfile.NamedTemporaryFile(delete=False).name
    same(rexec("sh", "-c", f"echo echo hi > {plain}; chmod 644 {plain}")[0], 0, "a far file that is not executable")
    for command, wanted in (("no-such-command", 127), ("/no/such/command", 127), ("/etc/passwd/x", 127),
                            (plain, 126), ("/etc", 126)):
        status, out, err = rexec(command)
        same((status, out), (wanted, b""), command)
        one_line(err, command)
        assert command.encode() in err, f"{command} is not named: {err!r}"


def a_script_without_a_shebang_is_the_shells():
    script = tempfile.NamedTemporaryFile(delete=False).name
    same(rexec("sh", "-c", f"printf 'echo \"$0 says $1\"; exit 7' >{script}; chmod 755 {script}")[0], 0, "a far script")
    status, out, err = rexec(script, "hi there")
    same((status, out, err), (7, f"{script} says hi there\n".encode(), b""), "run by the shell")


def without_a_server_255_and_one_line_soon():
    host = os.environ["CMD_NET_ADDR"].rsplit(":", 1)[0]
    begun = time.monotonic()
    status, out, err = rexec("true", env={**os.environ, "CMD_NET_ADDR": f"{host}:9"})
    took = time.monotonic() - begun
    same((status, out), (255, b""), "no server")
    one_line(err, "no server")
    assert took < 5, f"it took {took:.1f} s"


# ---- bytes --------------------------------------------------------------------------------------------------------


def bulk_both_ways_with_a_slow_reader_while_small_requests_are_answered():
    up = noise(20240917, 64 * MIB)
    waits = []
    stop = threading.Event()
    cats = [start("cat", stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL, bufsize=0) for _ in range(64)]
    for cat in cats:
        cat.stdin.write(b"first\n")
    for cat in cats:
        same(cat.stdout.readline(), b"first\n", "the first answer of a cat")

    def small():
        n = 0
        while not stop.is_set():
            cat = cats[n % len(cats)]
            line = b"%d\n" % n
            begun = time.monotonic()
            cat.stdin.write(line)
            same(cat.stdout.readline(), line, "a small answer")
            waits.append(time.monotonic() - begun)
            n += 1

    asking = threading.Thread(target=small)
    asking.start()
    try:
        status, out, _ = rexec("sha256sum", stdin=up)
        same((status, out.split()[:1]), (0, [hashlib.sha256(up).hexdigest().encode()]), "64 MiB through stdin")
        seed = 77
        print(f"seed {seed}", flush=True)
        make = f"import sys,random; r=random.Random({seed})\nfor _ in range(64): sys.stdout.buffer.write(r.randbytes({MIB}))"
        wanted = hashlib.sha256()
        rng = random.Random(seed)
        for _ in range(64):
            wanted.update(rng.randbytes(MIB))
        far = start(PYTHON, "-c", make, stdin=subprocess.DEVNULL, stdout=PIPE, stderr=subprocess.DEVNULL)
        got, size = hashlib.sha256(), 0
        while part := far.stdout.read1(MIB):
            got.update(part)
            size += len(part)
            # Slow: whatever the pipes and windows hold stays full meanwhile.
            time.sleep(0.01)
        same((size, far.wait()), (64 * MIB, 0), "64 MiB through stdout")
        same(got.hexdigest(), wanted.hexdigest(), "the sum of 64 MiB through stdout")
    finally:
        stop.set()
        asking.join()
    for cat in cats:
        cat.stdin.close()
    for cat in cats:
        same((cat.stdout.read(), cat.wait(30)), (b"", 0), "a cat's end")
    waits.sort()
    middle, high = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
    print(f"{len(waits)} small requests: p50 {middle * 1e3:.1f} ms, p99 {high * 1e3:.1f} ms")
    assert len(waits) > 100 and middle < 0.05 and high < 0.5, f"{len(waits)} answers, p50 {middle:.3f} s, p99 {high:.3f} s"


def a_reader_that_stands_still_stops_the_command_and_nobody_else():
    far = start("sh", "-c", "head -c 100000000 /dev/zero; echo end >&2", stdin=subprocess.DEVNULL, stdout=PIPE, stderr=PIPE)
    same(len(far.stdout.read(MIB)), MIB, "the first bytes")
    for n in range(20):
        same(rexec("echo", str(n)), (0, b"%d\n" % n, b""), "a command beside it")
    assert far.poll() is None, "100 MB were written though nobody read them"
    same(len(far.stdout.read()), 100_000_000 - MIB, "the other bytes")
    same((far.stderr.read(), far.wait()), (b"end\n", 0), "its end")


def stdin_ends_and_may_be_anything():
    same(rexec("cat", stdin=b""), (0, b"", b""), "an empty pipe")
    same(rexec("wc", "-c", stdin=b"x" * 100_001), (0, b"100001\n", b""), "a pipe")
    same(rexec("wc", "-c", stdin=subprocess.DEVNULL), (0, b"0\n", b""), "/dev/null")
    with tempfile.TemporaryFile() as file:
        file.write(b"head" + b"y" * 300_000)
        file.seek(0)
        same(rexec("wc", "-c", stdin=file), (0, b"300004\n", b""), "a file")
        file.seek(4)
        status, out, err = rexec("head", "-c", "3", stdin=file)
        same((status, out, err), (0, b"yyy", b""), "a file from its offset")
    near, far = socket.socketpair()
    with start("cat", stdin=far, stdout=PIPE, stderr=subprocess.DEVNULL) as cat:
        far.close()
        near.sendall(b"by socket")
        near.shutdown(socket.SHUT_WR)
        same((cat.stdout.read(), cat.wait()), (b"by socket", 0), "a socket")
    held = start("cat", stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL)
    held.stdin.write(b"a")
    held.stdin.flush()
    same(held.stdout.read1(10), b"a", "what was written before the end")
    assert held.poll() is None
    held.stdin.close()
    same((held.stdout.read(), held.wait(10)), (b"", 0), "after the end")
    # A command that ends with its stdin unread, and one that ends while stdin stays open.
    same(rexec("true", stdin=b"z" * MIB)[0], 0, "unread stdin")
    open_end = start("echo", "x", stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL)
    same((open_end.stdout.read(), open_end.wait(10)), (b"x\n", 0), "an open stdin")


def a_closed_standard_fd_is_dev_null_there():
    """As for every program of a runtime that never leaves 0-2 open for other files to take; the others work."""
    null = "1:3"
    for closed in (0, 1, 2):
        near, far = os.pipe()
        # The far program says on fd 9 which devices its standard fds are.
        look = "import os\nof = [os.fstat(n).st_rdev for n in range(3)]\nos.write(9, ' '.join(f'{os.major(d)}:{os.minor(d)}' for d in of).encode())"
        done = subprocess.run(["sh", "-c", f'exec 9>&{far} {far}>&- {closed}>&- && exec "$@"', "sh", REXEC, PYTHON, "-c", look],
                              pass_fds=[far], stdin=PIPE, stdout=PIPE, stderr=PIPE, timeout=20)
        os.close(far)
        said = os.fdopen(near, "rb").read().decode().split()
        same(done.returncode, 0, f"without fd {closed}: {done.stderr!r}")
        same([n for n in range(3) if said[n] == null], [closed], f"without fd {closed}")


# Writer n's lines in bytes of its own, so that each writer's can be told from the others' wherever they come to lie.
LINES = """
import os, sys
n, count = int(sys.argv[1]), int(sys.argv[2])
for i in range(count):
    os.write(1, bytes(128 + 11 * n + d for d in [*map(int, str(i)), 10]))
"""


def an_append_log_keeps_every_byte_of_every_writer():
    count = 1500
    with tempfile.NamedTemporaryFile() as log:
        log.write(b"before")
        log.flush()
        out = os.open(log.name, os.O_WRONLY | os.O_APPEND)

        def writer(n):
            prefix = [REXEC] if n < 4 else []
            done = subprocess.run([*prefix, PYTHON, "-c", LINES, str(n), str(count)], stdin=subprocess.DEVNULL, stdout=out,
                                  stderr=subprocess.DEVNULL, timeout=60)
            same(done.returncode, 0, f"writer {n}")

        each(writer, 8)
        with open(log.name, "rb") as file:
            written = file.read()
    same(written[:6], b"before", "what was in the log before")
    for n in range(8):
        digits = [b - 128 - 11 * n for b in written if 0 <= b - 128 - 11 * n < 11]
        wanted = [d for i in range(count) for d in [*map(int, str(i)), 10]]
        same(digits, wanted, f"the bytes of writer {n}")


def an_append_log_keeps_lines_whole():
    """Each line is one write of a command's; a file takes it whole however many commands write to it."""
    with tempfile.NamedTemporaryFile() as log:
        out = os.open(log.name, os.O_WRONLY | os.O_APPEND)

        def writer(n):
            script = f"i=0; while [ $i -lt 2000 ]; do echo {n}-xxxxxxxxxxxxxxxxxxxx-$i; i=$((i+1)); done"
            done = start("sh", "-c", script, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL)
            same(done.wait(60), 0, "a writer")

        each(writer, 4)
        with open(log.name, "rb") as file:
            lines = file.read().split(b"\n")
    torn = [line for line in lines if not re.fullmatch(rb"(\d-x{20}-\d+)?", line)]
    same(torn, [], "torn lines")


def stdout_and_stderr_of_one_pipe_keep_their_order():
    script = "i=0; while [ $i -lt 2000 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done"
    done = subprocess.run([REXEC, "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=PIPE, stderr=subprocess.STDOUT)
    lines = done.stdout.split()
    same(lines, [b"%c%d" % (c, i) for i in range(2000) for c in b"oe"], "the lines of both")


def output_is_whole_however_soon_the_command_exits():
    def one(n):
        size = 1_000_000 + n
        status, out, err = rexec("sh", "-c", f"head -c {size} /dev/zero; exit {n}")
        same((status, len(out), err), (n, size, b""), f"{size} bytes, then exit")

    each(one, 100, 4)


def both_ways_at_once_without_a_deadlock():
    text = noise(99, 32 * MIB)
    status, out, err = rexec("cat", stdin=text)
    same((status, len(out), err), (0, len(text), b""), "32 MiB there and back")
    assert out == text, "other bytes came back"


def a_reader_that_goes_away_ends_the_command_by_sigpipe():
    far = start("yes", stdin=subprocess.DEVNULL, stdout=PIPE, stderr=subprocess.DEVNULL)
    same(far.stdout.readline(), b"y\n", "the first line")
    far.stdout.close()
    same(far.wait(10), 128 + signal.SIGPIPE, "yes | head -n 1")


# ---- what a command is given ----------------------------------------------------------------------------------------

ECHO_ARGS = "import os,sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"


def arguments_arrive_exactly():
    for args in ([" ", "a b", "'", '"', "\\", "$HOME `id` $(id)", "a\nb\n", "", "", "*", "-x", "--", "\x7f\t", "é".encode(), b"\xff\xfe"],
                 ["", ""], [], ["x" * 131_071], ["y" * 99_999] * 15 + ["z" * 7]):
        status, out, err = rexec(PYTHON, "-c", ECHO_ARGS, *args, env={**os.environ})
        same((status, err), (0, b""), f"{len(args)} arguments")
        same(out, b"\0".join(map(os.fsencode, args)), f"{len(args)} arguments")
    name = b"a\xffb"
    same(rexec("sh", "-c", 'printf "%s" "$0"', name)[1], name, "an argument that is no text")


def the_environment_arrives_exactly_but_for_what_is_the_links():
    mine = {b"CMD_NET_ADDR": os.environb[b"CMD_NET_ADDR"], b"PATH": b"/usr/bin:/bin", b"EMPTY": b"", b"LINES": b"a\nb=c",
            b"BYTES": b"\xff\x01", b"LONG": b"v" * 100_000, b"_": b"x", b"HOME": b"/nowhere"}
    # As a program's own environ would have it: /proc/self/environ keeps the order too.
    status, out, err = rexec("/bin/cat", "/proc/self/environ", env=mine)
    same((status, err), (0, b""), "env")
    got = out.split(b"\0")[:-1]
    same(sorted(got), sorted(k + b"=" + v for k, v in mine.items()), "the environment")
    shim = {**mine, b"LD_PRELOAD": os.environb[b"SHIM"]}
    status, out, err = rexec("/bin/cat", "/proc/self/environ", env=shim)
    same((status, err), (0, b""), "env under the shim")
    assert b"LD_PRELOAD" not in out, "the shim is this side's"


def sockets_of_socket_activation_are_for_the_command():
    show = 'test "$LISTEN_PID" = $$ && echo "mine: $LISTEN_FDS" || echo "not mine: $LISTEN_PID"'
    for what, pid, wanted in (("the stand-in's", "$$", b"mine: 1\n"), ("another's", "1", b"not mine: 1\n")):
        # As a manager does it: the process that will be the stand-in says its own number, and then is it.
        words = f'LISTEN_FDS=1 LISTEN_PID={pid} exec "$0" sh -c \'{show}\''
        done = subprocess.run(["sh", "-c", words, REXEC], stdin=subprocess.DEVNULL, stdout=PIPE, stderr=PIPE, timeout=60)
        same((done.returncode, done.stdout, done.stderr), (0, wanted, b""), what)


def the_working_directory_and_the_umask_are_carried():
    both = "/var/tmp"
    same(rexec("/bin/pwd", cwd=both), (0, both.encode() + b"\n", b""), "a directory that is there")
    for mask in (0o000, 0o022, 0o077, 0o777):
        same(rexec("sh", "-c", "umask", umask=mask)[1], b"%04o\n" % mask, "umask")


def a_command_never_runs_in_another_directory_than_its_callers():
    def refused(what, text, *argv, **options):
        status, out, err = rexec(*argv, **options)
        same((status, out), (126, b""), what)
        one_line(err, what)
        assert text.encode() in err, f"{what}: {text} is not said: {err!r}"

    # What the command would remove, if it ran in another directory after all.
    same(rexec("mkdir", "/lib.precious")[0], 0, "a directory in the root there")
    daemon = ("/usr/bin/qemu-system-x86_64", "-machine", "none", "-daemonize", "-pidfile", "/var/tmp/none.pid")
    with tempfile.TemporaryDirectory() as parent:
        build = parent + "/build"
        os.mkdir(build)
        for argv in (["/bin/rm", "-r", "lib.precious"], ["rm", "-r", "lib.precious"], ["./rm"], ["pwd"], daemon):
            refused(f"{argv[0]} in a directory that is only here", build, *argv, cwd=build)
        same(rexec("sh", "-c", f"mkdir {parent}; echo >{build}")[0], 0, "a file of its name there")
        refused("in what is a file there", build, "pwd", cwd=build)
        same(rexec("sh", "-c", f"rm {build}; mkdir -m 700 {build}; chown 1 {build}")[0], 0, "another user's there")
        weak = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
        refused("in what the caller may not enter there", build, "pwd", cwd=build, prefix=weak)
        same(rexec("pwd", cwd=build), (0, build.encode() + b"\n", b""), "in a directory that is there by now")
        same(rexec("rm", "-r", parent)[0], 0, "tidying")
        removed = 'rmdir "$PWD"; exec "$0" rm -r lib.precious'
        done = subprocess.run(["sh", "-c", removed, REXEC], cwd=tempfile.mkdtemp(), stdin=subprocess.DEVNULL,
                              stdout=PIPE, stderr=PIPE, timeout=60)
        same((done.returncode, done.stdout), (126, b""), "in a directory that was removed")
        one_line(done.stderr, "in a directory that was removed")
    same(rexec("rmdir", "/lib.precious")[0], 0, "the directory in the root is still there")


# Limits, niceness and policy, processors, and what becomes of signals: a line each, as the kernel shows them.
INHERITED = ("cut -d' ' -f19,40,41 /proc/$$/stat; chrt -p $$ | sed s/[0-9]*.s.//; cat /proc/self/limits; nice; "
             "exec grep -E '^(SigBlk|SigIgn|Cpus_allowed_list):' /proc/self/status")


def what_a_process_leaves_to_its_programs_is_carried():
    def signals(ignored=(), blocked=()):
        for one in ignored:
            signal.signal(one, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)

    def limits():
        for which, soft, hard in ((resource.RLIMIT_NOFILE, 300, 400), (resource.RLIMIT_CORE, 0, 1 << 20),
                                  (resource.RLIMIT_STACK, 4 * MIB, 5 * MIB), (resource.RLIMIT_FSIZE, 1 << 30, 1 << 40)):
            resource.setrlimit(which, (soft, hard))

    def policy(which, priority):
        os.sched_setscheduler(0, which | os.SCHED_RESET_ON_FORK, os.sched_param(priority))

    processors = sorted(os.sched_getaffinity(0))
    for what, before in {
        "nothing": lambda: None,
        "limits": limits,
        "low priority": lambda: (os.nice(7), os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))),
        "idle": lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)),
        "high priority": lambda: os.nice(-5),
        "high priority, and its children's a usual one": lambda: (os.nice(-5), policy(os.SCHED_OTHER, 0)),
        "real time": lambda: policy(os.SCHED_RR, 3),
        "one processor": lambda: os.sched_setaffinity(0, processors[-1:]),
        "all processors, named": lambda: os.sched_setaffinity(0, processors),
        "nohup": lambda: signals(ignored=[signal.SIGHUP]),
        "a shell's background job": lambda: signals(ignored=[signal.SIGINT, signal.SIGQUIT]),
        "signals of all kinds": lambda: signals([signal.SIGUSR1, signal.SIGCHLD, 40], [signal.SIGUSR2, signal.SIGALRM, 64]),
    }.items():
        local = subprocess.run(["sh", "-c", INHERITED], stdout=PIPE, preexec_fn=before, check=True).stdout
        same(rexec("sh", "-c", INHERITED, preexec_fn=before), (0, local, b""), what)
    # A hangup does no harm to a command under nohup, and is no secret to one that asks for it.
    child = start("sh", "-c", "echo READY; read x; echo $x", stdin=PIPE, stdout=PIPE,
                  preexec_fn=lambda: signals(ignored=[signal.SIGHUP]))
    same(child.stdout.readline(), b"READY\n", "nohup")
    child.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    same(child.communicate(b"alive\n", timeout=20)[0], b"alive\n", "nohup")


def a_user_may_not_raise_its_priority_there():
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    status, out, err = rexec("nice", prefix=nobody, preexec_fn=lambda: os.nice(-5))
    same((status, out, err), (0, b"0\n", b""), "a high priority of nobody's")
    same(rexec("nice", prefix=nobody, preexec_fn=lambda: os.nice(5)), (0, b"5\n", b""), "a low one")


IDENTITY = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")


def the_command_is_who_its_caller_is_and_can_do_no_more():
    nobody = ["--reuid", "65534", "--regid", "65534"]
    for what, flags in {
        "root": None,
        "root with fewer capabilities": ["--bounding-set", "-all,+chown,+kill,+setpcap,+setuid,+setgid"],
        "root without any": ["--bounding-set", "-all", "--inh-caps", "-all"],
        "nobody": [*nobody, "--clear-groups"],
        "nobody with groups": [*nobody, "--groups", "4,24,100000"],
        "nobody who gets no new privileges": [*nobody, "--clear-groups", "--no-new-privs"],
        "libvirt's probe": ["--reuid", "64055", "--regid", "64055", "--clear-groups", "--inh-caps", "-all,+dac_override",
                            "--ambient-caps", "-all,+dac_override", "--bounding-set", "-all,+dac_override"],
    }.items():
        prefix = ["setpriv", *flags] if flags else []
        local = subprocess.run([*prefix, "cat", "/proc/self/status"], stdout=PIPE, check=True).stdout
        status, remote, err = rexec("cat", "/proc/self/status", prefix=prefix)
        same((status, err), (0, b""), what)
        same(identity(remote), identity(local), what)


def identity(status):
    fields = dict(line.split(":", 1) for line in status.decode().splitlines())
    return {name: fields[name].split() for name in IDENTITY}


# ---- signals and the end ------------------------------------------------------------------------------------------

TRAPS = """
import signal, sys
got = []
names = ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1', 'SIGUSR2', 'SIGQUIT', 'SIGCONT', 'SIGWINCH')
signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, n) for n in names])
print('READY', flush=True)
for _ in names:
    print(signal.Signals(signal.sigwait([getattr(signal, n) for n in names])).name, flush=True)
sys.exit(9)
"""


def signals_of_the_client_reach_the_command():
    far = start(PYTHON, "-c", TRAPS, stdin=subprocess.DEVNULL, stdout=PIPE, stderr=subprocess.DEVNULL)
    same(far.stdout.readline(), b"READY\n", "the start")
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGCONT", "SIGWINCH"):
        far.send_signal(getattr(signal, name))
        same(far.stdout.readline(), name.encode() + b"\n", f"after {name}")
    same(far.wait(10), 9, "its end")
    sleeper = start("sh", "-c", "echo READY; exec sleep 1000", stdin=subprocess.DEVNULL, stdout=PIPE, stderr=subprocess.DEVNULL)
    same(sleeper.stdout.readline(), b"READY\n", "the start")
    sleeper.terminate()
    same(sleeper.wait(10), 128 + 15, "a command that SIGTERM ends")


# A child, and a grandchild and a daemon in sessions of their own, all findable by their argument.
TREE = """
import os, sys, time
def leaf():
    os.execv('/bin/sleep', ['sleep', sys.argv[1]])
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        leaf()
    leaf()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        null = os.open('/dev/null', os.O_RDWR)
        for n in range(3): os.dup2(null, n)
        leaf()
    os._exit(0)
os.wait()
print('READY', flush=True)
leaf()
"""


def tree(mark):
    far = start(PYTHON, "-c", TREE, mark, stdin=subprocess.DEVNULL, stdout=PIPE, stderr=PIPE)
    same(far.stdout.readline(), b"READY\n", "the tree")
    return far


def killing_the_client_kills_the_whole_tree(mark):
    far = tree(mark)
    ready()
    far.kill()
    far.wait()
    ready("KILLED")


def losing_the_other_machine_ends_the_client_with_255(mark, seconds):
    far = tree(mark)
    ready()
    begun = time.monotonic()
    status = far.wait(float(seconds))
    took = time.monotonic() - begun
    err = far.stderr.read()
    same(status, 255, f"after {took:.1f} s")
    one_line(err, "a lost machine")
    print(f"255 after {took:.1f} s: {err!r}")
    ready("ENDED")


def a_background_process_left_behind_does_not_hold_the_client():
    begun = time.monotonic()
    same(rexec("sh", "-c", "sleep 50 & echo started"), (0, b"started\n", b""), "a command that leaves a process")
    took = time.monotonic() - begun
    assert took < 8, f"it took {took:.1f} s"


def fifty_commands_at_once():
    def one(n):
        word = f"{n}-" * 100
        same(rexec("cat", stdin=word.encode() * 1000), (0, word.encode() * 1000, b""), f"command {n}")

    each(one, 50, 50)


# ---- inherited fds ------------------------------------------------------------------------------------------------


class At:
    """Keeps numbers free from the start of this program on, so that a child may be given an fd at one of them."""

    def __init__(self, *numbers):
        self.null = os.open("/dev/null", os.O_RDWR)
        for number in numbers:
            os.dup2(self.null, number, inheritable=False)

    def __call__(self, number, fd):
        """Options of `start` for a child that has `fd` at `number`; call `done` when it has started."""
        os.dup2(fd, number, inheritable=False)
        return {"pass_fds": [number]}

    def done(self, number):
        os.dup2(self.null, number, inheritable=False)


at = At(6, 7, 8, 30)


def a_client_that_was_stopped_for_long_goes_on():
    """As after ^Z and fg: longer than a silent machine is waited for."""
    with start("sh", "-c", "echo begun; sleep 3; echo later; read line; echo $line; exit 7", stdin=PIPE, stdout=PIPE) as child:
        same(child.stdout.readline(), b"begun\n", "the first line")
        child.send_signal(signal.SIGSTOP)
        time.sleep(16)
        child.send_signal(signal.SIGCONT)
        same(child.stdout.readline(), b"later\n", "what was said meanwhile")
        child.stdin.write(b"and on\n")
        child.stdin.close()
        same((child.stdout.read(), child.wait(10)), (b"and on\n", 7), "the rest")


def one_pipe_at_two_numbers_is_one_pipe():
    """As shells leave it behind: every byte is there, in its order."""
    wanted = "100000 588895"
    for line in ('"$REXEC" wc -lc < <(seq 1 100000)', 'seq 1 100000 | "$REXEC" wc -lc 5<&0',
                 'seq 1 100000 > /tmp/seq; "$REXEC" wc -lc 5<&0 < /tmp/seq; rm /tmp/seq'):
        for _ in range(3):
            ran = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60)
            same(" ".join(ran.stdout.decode().split()), wanted, f"{line}: {ran.stderr!r}")
    ran = subprocess.run(["bash", "-c", '"$REXEC" sh -c "echo a >&7; echo b; echo c >&7" 7> >(cat) | cat; wait'],
                         capture_output=True, timeout=60)
    same(sorted(ran.stdout.split()), [b"a", b"b", b"c"], "two pipes")


def an_inherited_pipe_is_there_at_its_number():
    near, far = os.pipe()
    with start("sh", "-c", "echo via seven >&7; echo via one; ls /proc/self/fd | tr '\\n' ' '", stdin=subprocess.DEVNULL,
               stdout=PIPE, stderr=subprocess.DEVNULL, **at(7, far)) as child:
        os.close(far)
        at.done(7)
        same(os.fdopen(near, "rb").read(), b"via seven\n", "the pipe's bytes and end")
        out = child.stdout.read()
        assert out.startswith(b"via one\n"), out
        # 3 is ls's own directory.
        same(out.splitlines()[1].split(), [b"0", b"1", b"2", b"3", b"7"], "the fds")
        same(child.wait(10), 0, "its end")
    near, far = os.pipe()
    with start("sh", "-c", "cat <&7", stdin=subprocess.DEVNULL, stdout=PIPE, stderr=subprocess.DEVNULL, **at(7, near)) as child:
        os.close(near)
        at.done(7)
        os.write(far, b"to seven")
        os.close(far)
        same((child.stdout.read(), child.wait(10)), (b"to seven", 0), "a pipe that is read")
    both, other = socket.socketpair()
    with start("sh", "-c", "exec cat <&7 >&7", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
               **at(7, other.fileno())) as child:
        other.close()
        at.done(7)
        both.sendall(b"there and back")
        both.shutdown(socket.SHUT_WR)
        same((read_all(both), child.wait(10)), (b"there and back", 0), "a socket")


def read_all(sock):
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


MONITOR = """
import socket
listener = socket.socket(fileno=30)
for n in range(3):
    client, _ = listener.accept()
    client.sendall(b'QMP %d\\n' % n)
    while part := client.recv(65536):
        client.sendall(part)
    client.close()
"""


def a_listening_socket_is_served_there_with_its_waiting_client():
    path = tempfile.mkdtemp() + "/monitor.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    # As libvirt does: connected before the program has even started.
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    child = start(PYTHON, "-c", MONITOR, stdin=subprocess.DEVNULL, stderr=PIPE, **at(30, listener.fileno()))
    listener.close()
    at.done(30)
    for n in range(3):
        client.settimeout(10)
        greeting = client.recv(100)
        same(greeting, b"QMP %d\n" % n, "the greeting")
        client.sendall(b"query" * 1000)
        client.shutdown(socket.SHUT_WR)
        same(read_all(client), b"query" * 1000, "the answer")
        client.close()
        if n < 2:
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
    same(child.wait(10), 0, "the command's end")


def a_file_open_for_writing_is_refused_by_name_before_anything_runs():
    trace = f"/tmp/ran-{random.randrange(1 << 60)}"
    with tempfile.NamedTemporaryFile() as file:
        status, out, err = rexec("touch", trace, **at(8, file.fileno()))
        same((status, out), (255, b""), "a command with a file open for writing")
        one_line(err, "the refusal")
        assert file.name.encode() in err, f"the file is not named: {err!r}"
    same(rexec("test", "-e", trace)[0], 1, "whether it ran all the same")
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"0123456789")
        file.flush()
        reader = os.open(file.name, os.O_RDONLY)
        os.lseek(reader, 4, os.SEEK_SET)
        same(rexec("sh", "-c", "cat <&8", **at(8, reader)), (0, b"456789", b""), "one that is only read")
    # An eventfd cannot be made again there.
    event = os.eventfd(0)
    status, _, err = rexec("touch", trace, **at(8, event))
    same(status, 255, "a command with an eventfd")
    one_line(err, "the refusal of an eventfd")
    same(rexec("test", "-e", trace)[0], 1, "whether it ran all the same")


def lock_holder(path):
    """Who holds a POSIX lock on the file; None: nobody."""
    with open(path, "r+b") as file:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else pid


# Locks fd 6 and becomes rexec: as libvirt does between fork and exec, so that the lock is the stand-in's.
LOCKER = """
import fcntl, os, sys
fcntl.lockf(6, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.write(6, b'%d' % os.getpid())
os.execv(sys.argv[1], sys.argv[1:])
"""


def a_locked_pid_file_stays_here_and_locked():
    path = tempfile.mkdtemp() + "/vm.pid"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    look = ["sh", "-c", "ls /proc/self/fd | tr '\\n' ' '; echo; exec cat"]
    child = start(*look, prefix=[PYTHON, "-c", LOCKER], stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                  **at(6, file))
    at.done(6)
    same(child.stdout.readline().split(), [b"0", b"1", b"2", b"3"], "the far fds")
    same(lock_holder(path), child.pid, "the lock's holder while the command runs")
    child.stdin.write(b"x")
    same(child.stdout.read(1), b"x", "the command")
    same(lock_holder(path), child.pid, "the lock's holder later")
    child.stdin.close()
    same(child.wait(10), 0, "its end")
    same(lock_holder(path), None, "the lock's holder when it has ended")
    same(open(path, "rb").read(), b"%d" % child.pid, "the pid file")


# ---- QEMU ---------------------------------------------------------------------------------------------------------


def probe(directory):
    """One probe as libvirt does it; returns the stand-in's pid."""
    pid_file = directory + "/qmp.pid"
    done = subprocess.run(
        [REXEC, "/usr/bin/qemu-system-x86_64", "-S", "-no-user-config", "-nodefaults", "-nographic", "-machine", "none",
         "-qmp", f"unix:{directory}/qmp.monitor,server=on,wait=off", "-pidfile", pid_file, "-daemonize"],
        stdin=subprocess.DEVNULL, stdout=PIPE, stderr=PIPE, timeout=60)
    same((done.returncode, done.stdout, done.stderr), (0, b"", b""), "the probe")
    pid = int(open(pid_file).read())
    with open(f"/proc/{pid}/comm") as comm:
        same(comm.read(), "rexec\n", "who the pid file names")
    return pid


def stand_ins():
    return subprocess.run(["pgrep", "-x", "rexec"], stdout=PIPE).stdout


def gone(pid):
    """Whether the process is gone; one that waits for its reaper is."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def eventually(what, holds, within=15):
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, f"after {within} s still not: {what}"
        time.sleep(0.01)


def qemu_that_daemonizes_leaves_a_stand_in(directory):
    # The pid file is on a file system that both machines have, as the offload's is: the far QEMU's own pid is in it
    # already when the stand-in writes its own. QEMU itself can only write where the directory is on its machine.
    os.makedirs(directory, exist_ok=True)
    same(rexec("mkdir", "-p", directory)[0], 0, "mkdir there")
    with open(directory + "/qmp.pid", "w") as file:
        file.write("4194304444\n")
    pid = probe(directory)
    far_pid = int(rexec("cat", directory + "/qmp.pid")[1])
    ready(f"FAR {far_pid}")
    os.kill(pid, signal.SIGTERM)
    eventually("the stand-in ends with its QEMU", lambda: gone(pid))
    ready("ENDED")


def probes_in_a_row_leave_nothing(directory, count):
    os.makedirs(directory, exist_ok=True)
    same(rexec("mkdir", "-p", directory)[0], 0, "mkdir there")
    open(directory + "/qmp.pid", "w").close()
    for n in range(int(count)):
        pid = probe(directory)
        os.kill(pid, signal.SIGTERM)
        eventually(f"stand-in {n} ends with its QEMU", lambda: gone(pid))
    same(stand_ins(), b"", "stand-ins that are left")


SLOW_DAEMON = """
import os, sys, time
told, tell = os.pipe()
if os.fork():
    os.read(told, 1)
    os._exit(0)
os.setsid()
if os.fork():
    time.sleep(1000)
os.dup2(os.open("/dev/null", os.O_RDWR), 0), os.dup2(0, 1), os.dup2(0, 2)
os.write(tell, b"x")
time.sleep(1000)
"""


def a_signal_reaches_a_daemon_whose_parent_has_not_ended_yet(directory):
    """It forks twice, and the first child is still there when the command has ended."""
    os.makedirs(directory, exist_ok=True)
    pid_file = directory + "/slow.pid"
    open(pid_file, "w").close()
    done = subprocess.run([REXEC, PYTHON, "-c", SLOW_DAEMON, "-pidfile", pid_file, "-daemonize"],
                          stdin=subprocess.DEVNULL, stdout=PIPE, stderr=PIPE, timeout=60)
    same((done.returncode, done.stdout, done.stderr), (0, b"", b""), "the command")
    pid = int(open(pid_file).read())
    os.kill(pid, signal.SIGTERM)
    eventually("the stand-in ends with its daemon", lambda: gone(pid), within=5)


def a_qemu_that_fails_says_so_and_leaves_no_stand_in():
    done = subprocess.run(
        [REXEC, "/usr/bin/qemu-system-x86_64", "-machine", "no-such-machine", "-pidfile", "/var/tmp/none.pid", "-daemonize"],
        stdin=subprocess.DEVNULL, stdout=PIPE, stderr=PIPE, timeout=30)
    same((done.returncode, done.stdout), (1, b""), "a QEMU that fails")
    assert b"unsupported machine type" in done.stderr, done.stderr
    eventually("no stand-in is left", lambda: not stand_ins(), within=3)


def killing_the_stand_in_kills_its_qemu(directory):
    os.makedirs(directory, exist_ok=True)
    same(rexec("mkdir", "-p", directory)[0], 0, "mkdir there")
    open(directory + "/qmp.pid", "w").close()
    os.kill(probe(directory), signal.SIGKILL)


# ---- strangers ----------------------------------------------------------------------------------------------------


def strangers_harm_nobody():
    host, port = os.environ["CMD_NET_ADDR"].removeprefix("tcp://").rsplit(":", 1)
    where = (host, int(port))
    seed = 4711
    print(f"seed {seed}", flush=True)
    rng = random.Random(seed)
    silent = [socket.create_connection(where) for _ in range(100)]
    working = start("cat", stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL, bufsize=0)
    working.stdin.write(b"1\n")
    same(working.stdout.readline(), b"1\n", "a command before the strangers")
    with socket.create_connection(where) as http:
        print(f"HTTP from {http.getsockname()[1]}", flush=True)
        http.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        http.settimeout(8)
        # An alert says that it is no TLS; then the end.
        same(http.recv(4096)[:3], b"\x15\x03\x03", "an HTTP request")
        ended(http, "an HTTP request")
    for n in range(200):
        with socket.create_connection(where) as stranger:
            junk = rng.randbytes(rng.choice((1, 7, 15, 16, 17, 100, 511, 512, 513, 70_000)))
            try:
                stranger.sendall(junk)
                stranger.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        if n % 50 == 0:
            same(rexec("echo", "hi"), (0, b"hi\n", b""), "a command among strangers")
    working.stdin.write(b"2\n")
    same(working.stdout.readline(), b"2\n", "a command that ran all the while")
    working.stdin.close()
    same(working.wait(10), 0, "its end")
    # The silent ones are shown out.
    for stranger in silent:
        stranger.settimeout(10)
        ended(stranger, "a silent connection")
    same(rexec("echo", "hi"), (0, b"hi\n", b""), "a command after the strangers")


def captured_hello():
    """What rexec says first, as a peer that accepts it would hear it."""
    with socket.create_server(("127.0.0.1", 0)) as fake:
        env = {**os.environ, "CMD_NET_ADDR": f"tcp://127.0.0.1:{fake.getsockname()[1]}"}
        caller = start("true", env=env, stdin=subprocess.DEVNULL, stderr=PIPE)
        conn, _ = fake.accept()
        with conn:
            hello = conn.recv(4096)
        err = caller.stderr.read()
        same(caller.wait(10), 255, "a server that hangs up")
        one_line(err, "a server that hangs up")
    return hello


def noise_behind_a_good_hello_ends_that_connection_alone():
    host, port = os.environ["CMD_NET_ADDR"].removeprefix("tcp://").rsplit(":", 1)
    where = (host, int(port))
    hello = captured_hello()
    seed = 2718
    print(f"seed {seed}", flush=True)
    rng = random.Random(seed)
    working = start("cat", stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL, bufsize=0)
    for n in range(100):
        with socket.create_connection(where) as stranger:
            stranger.settimeout(10)
            stranger.sendall(hello)
            assert stranger.recv(4096), "no answer to a good HELLO"
            # Headers with small lengths and plausible types get further than pure noise.
            kind = n % 3
            if kind == 0:
                junk = rng.randbytes(4096)
            elif kind == 1:
                junk = b"".join(struct.pack("<IBBHII", rng.choice((0, 1, 16, 70_000, 1 << 31)), rng.randrange(32), rng.randrange(256),
                                            rng.randrange(8), rng.randrange(8), rng.randrange(1 << 32)) for _ in range(100))
            else:
                junk = struct.pack("<IBBHII", 100, rng.randrange(16), 0, 1, rng.randrange(4), 0) + rng.randbytes(rng.randrange(100))
            try:
                stranger.sendall(junk)
                stranger.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        if n % 10 == 0:
            line = b"%d\n" % n
            working.stdin.write(line)
            same(working.stdout.readline(), line, "a command beside it")
    working.stdin.close()
    same(working.wait(10), 0, "its end")
    same(rexec("echo", "hi"), (0, b"hi\n", b""), "a command afterwards")


def ended(sock, what):
    try:
        same(sock.recv(4096), b"", what)
    except ConnectionResetError:
        pass


# ---- everything once ----------------------------------------------------------------------------------------------


def a_bit_of_everything():
    for _ in range(5):
        each(lambda n: same(rexec("sh", "-c", f"exit {n}")[0], n, "exit"), 20)
        an_inherited_pipe_is_there_at_its_number()
        a_listening_socket_is_served_there_with_its_waiting_client()
        signals_of_the_client_reach_the_command()
        what_cannot_be_run_is_127_or_126_with_one_line()
        far = start("sleep", "1000", stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL)
        time.sleep(0.05)
        far.kill()
        far.wait()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
