"""Measures guest access for agent.sh: prints `name value` lines.

agent.py REQUESTS FILE
"""
import json
import os
import socket
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


def p50(action):
    times = []
    for _ in range(REQUESTS):
        begin = time.monotonic()
        action()
        times.append(time.monotonic() - begin)
    return sorted(times)[len(times) // 2] * 1000


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
    begin = time.monotonic()
    action()
    return SIZE / 1e6 / (time.monotonic() - begin)


def plain_in():
    with vsock(7003) as connection:
        connection.sendall(bytes(SIZE))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def plain_out():
    with vsock(7004) as connection:
        connection.sendall(b"%d\n" % SIZE)
        left = SIZE
        while left:
            left -= len(connection.recv(1 << 20)) or sys.exit("closed")


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
for action in (echo, direct, through):
    print(action.__name__, f"{p50(action):.2f}")
print("command", f"{p50(lambda: run('vm', 'exec', VM, '--', '/bin/true')):.2f}")
print("version", f"{p50(lambda: run('version')):.2f}")
print("plain_in", f"{rate(plain_in):.1f}")
print("plain_out", f"{rate(plain_out):.1f}")
with open(FILE, "wb") as file:
    file.write(os.urandom(SIZE))
print("cp_in", f"{rate(lambda: run('vm', 'cp', FILE, VM + ':/file')):.1f}")
print("cp_out", f"{rate(lambda: run('vm', 'cp', VM + ':/file', FILE + '.back')):.1f}")
assert open(FILE, "rb").read() == open(FILE + ".back", "rb").read()
record = open(os.path.join(os.path.dirname(DIRECTORY), "vsock-process")).read().splitlines()[1]
private, rss = memory(record.split()[0])
print("back_end_private", private)
print("back_end_rss", rss)
