"""Measures guest access for agent.sh: prints `name value` lines.

agent.py REQUESTS FILE
"""
import json
import os
import socket
import statistics
import subprocess
import sys
import time

SIZE = 64 << 20
EXEC = "/exec?cmd=/bin/true&stdin=false"


def run(*words):
    return subprocess.run(["slicectl", *words], check=True, capture_output=True).stdout


def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(path)
    return connection


def vsock(port):
    connection = connect(DEVICE)
    connection.sendall(b"CONNECT %d\n" % port)
    line = b""
    while not line.endswith(b"\n"):
        line += connection.recv(1) or sys.exit(f"port {port} refuses connections")
    return connection


def request(connection, path, method="POST"):
    connection.sendall(f"{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
    response = b""
    while part := connection.recv(65536):
        response += part
    assert b" 200 " in response.split(b"\r\n")[0], response
    return response


def elapsed(action):
    begin = time.monotonic()
    action()
    return (time.monotonic() - begin) * 1000


def p50(action):
    return statistics.median(elapsed(action) for _ in range(REQUESTS))


def echo():
    with vsock(7000) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


def direct():
    with vsock(516) as connection:
        assert b'"exit_code":0' in request(connection, EXEC)


def through():
    with connect(os.environ["SLICE_SOCKET"]) as connection:
        assert b'"exit_code":0' in request(connection, f"/v1/vms/{VM}/agent{EXEC}")


def rate(action):
    return SIZE / 1e3 / elapsed(action)


def stream_in():
    with vsock(7003) as connection:
        connection.sendall(bytes(SIZE))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def stream_out():
    with vsock(7004) as connection:
        connection.sendall(b"%d\n" % SIZE)
        left = SIZE
        while left:
            left -= len(connection.recv(1 << 20)) or sys.exit("closed")


def plain_in():
    with vsock(7005) as connection, open(FILE, "rb") as file:
        connection.sendfile(file)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def plain_out():
    with vsock(7006) as connection:
        with open(FILE + ".back", "wb") as file:
            while data := connection.recv(1 << 20):
                file.write(data)


def memory(pid):
    fields = dict(line.split(":") for line in open(f"/proc/{pid}/smaps_rollup") if ":" in line and "-" not in line.split(":")[0])
    number = lambda key: int(fields[key].split()[0])
    return number("Private_Dirty") + number("Private_Clean"), number("Rss")


REQUESTS, FILE = int(sys.argv[1]), sys.argv[2]
begin = time.monotonic()
VM = run("vm", "add", "bench", "--wait=agent", "-o", "name").decode().split("/")[-1].strip()
ready = time.monotonic() - begin
vm = json.loads(run("get", "vm", VM, "-o", "json"))
DIRECTORY = os.path.dirname(vm["status"]["vmm"]["api_socket"])
DEVICE = os.path.join(DIRECTORY, "vsock.sock")
with vsock(516) as connection:
    health = json.loads(request(connection, "/health", "GET").split(b"\r\n\r\n", 1)[1])
begin_of_agent = time.monotonic() - begin - health["agent_uptime"] / 1e9
print("until_agent", f"{ready:.3f}")
print("agent_age", f"{ready - begin_of_agent:.3f}")
# Alternately, so that a slow moment of the machine slows all of them.
times = list(zip(*[[elapsed(action) for action in (echo, direct, through)] for _ in range(REQUESTS)]))
for name, values in zip(("echo", "direct", "through"), times):
    print(name, f"{statistics.median(values):.2f}")
print("on_top", f"{statistics.median(all_of - guest + floor for floor, guest, all_of in zip(*times)):.2f}")
print("command", f"{p50(lambda: run('vm', 'exec', VM, '--', '/bin/true')):.2f}")
print("version", f"{p50(lambda: run('version')):.2f}")
with open(FILE, "wb") as file:
    file.write(os.urandom(SIZE))
# The machines are noisy: alternately, and the median.
ACTIONS = {
    "stream_in": stream_in,
    "stream_out": stream_out,
    "plain_in": plain_in,
    "cp_in": lambda: run("vm", "cp", FILE, VM + ":/file"),
    "plain_out": plain_out,
    "cp_out": lambda: run("vm", "cp", VM + ":/file", FILE + ".back"),
}
rates = [[rate(action) for action in ACTIONS.values()] for _ in range(5)]
assert open(FILE, "rb").read() == open(FILE + ".back", "rb").read()
for name, values in zip(ACTIONS, zip(*rates)):
    print(name, f"{statistics.median(values):.1f}")
record = open(os.path.join(os.path.dirname(DIRECTORY), "vsock-process")).read().splitlines()[1]
private, rss = memory(record.split()[0])
print("back_end_private", private)
print("back_end_rss", rss)
