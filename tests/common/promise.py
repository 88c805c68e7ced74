"""What the scripts of several tests have in common: promises on one side, servers on the other."""
import contextlib
import sys
import threading


def same(got, wanted, what):
    assert got == wanted, f"{what}: {short(got)} where {short(wanted)} was to be"


def short(value):
    text = repr(value)
    return text if len(text) < 600 else f"{text[:300]} ... {text[-200:]} ({len(value)})"


def ready(word="READY"):
    """Says a word to the test, and waits for its line."""
    print(word, flush=True)
    return sys.stdin.readline().strip()


def exactly(sock, size):
    got = b""
    while len(got) < size:
        part = sock.recv(size - len(got))
        assert part, f"it ended after {len(got)} of {size} bytes"
        got += part
    return got


def serve(listener, answer, around=contextlib.nullcontext):
    """answer(client) on a thread of its own for each client, within around()."""
    def one(client):
        with client, around():
            try:
                answer(client)
            except OSError as e:
                print(f"{answer.__name__}: {e}", file=sys.stderr, flush=True)

    while True:
        client, _ = listener.accept()
        threading.Thread(target=one, args=(client,), daemon=True).start()
