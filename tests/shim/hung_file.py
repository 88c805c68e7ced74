"""Sends a file whose file system never answers to the datagram socket argv[1]; ends when its standard input does."""
import os
import socket
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../endurance"))
from silent_fs import SilentFs  # noqa: E402

fs = SilentFs()
to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to.connect(sys.argv[1])
for _ in range(3):
    socket.send_fds(to, [b"x"], [fs.file])
print("sent", flush=True)
sys.stdin.read()
fs.end()
