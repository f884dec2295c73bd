"""Measures the REST API for api.sh: prints `name value` lines.

api.py create PID COUNT         creates COUNT VMs with tags, by 32 clients
api.py delete PID               deletes them
api.py lists PID TIMES          the time of lists, on the Unix socket and on TCP with the token
api.py answers PID TIMES        the time of a create, and of `vm add` until its VM is Ready, alternately
api.py rounds PID ROUNDS COUNT CLIENTS   COUNT creates and deletes, several times, and what each round leaves
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time

SOCKET = os.environ["SLICE_SOCKET"]
STATE = os.environ["SLICE_STATE_DIR"]
NODES = "/hostgroup/bench0/nodes"
CLIENTS = 32
# The machines are noisy: the median of several turns is reported.
TURNS = 5


class Connection:
    """A connection that is kept."""

    def __init__(self, kind="unix"):
        if kind == "unix":
            self.stream, self.token = socket.socket(socket.AF_UNIX), ""
            self.stream.connect(SOCKET)
        else:
            self.stream = socket.create_connection(("127.0.0.1", int(os.environ["SLICE_API_PORT"])))
            self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with open(f"{STATE}/api/token") as file:
                self.token = f"authorization: Bearer {file.read().strip()}\r\n"
        self.stream.settimeout(60)

    def request(self, method, path, body=None):
        """The status and the bytes of the body."""
        text = "" if body is None else json.dumps(body)
        kind = "content-type: application/json\r\n" if text else ""
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\n{self.token}{kind}content-length: {len(text)}\r\n\r\n"
        self.stream.sendall((head + text).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.receive()
        head, rest = answer.split(b"\r\n\r\n", 1)
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length: "):
                length = int(line.split()[1])
        parts, found = [rest], len(rest)
        while found < length:
            parts.append(self.receive())
            found += len(parts[-1])
        return int(head.split()[1]), b"".join(parts)

    def receive(self):
        return self.stream.recv(1 << 20) or sys.exit("the connection has ended")


def elapsed(action):
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1000


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def by_clients(clients, action):
    """Runs `action(connection, client)` of all clients at once; the number of errors."""
    errors = []

    def run(number):
        try:
            action(Connection(), number)
        except (AssertionError, OSError, SystemExit) as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors[:3]:
        print("error:", error, file=sys.stderr)
    return len(errors)


def create(connection, tags):
    status, body = connection.request("POST", NODES, {"tags": tags})
    assert status == 200, (status, body)
    return json.loads(body)["hostname"]


def remove(connection, name):
    status, body = connection.request("DELETE", f"{NODES}/{name}")
    assert status == 200, (status, body)


def create_all(count):
    def some(connection, client):
        for number in range(client, count, CLIENTS):
            create(connection, [f"name=n{number}", f"job={number % 2}"])

    if by_clients(CLIENTS, some):
        sys.exit("VMs were not created")


def delete_all():
    names = [node["hostname"] for node in json.loads(Connection().request("GET", NODES)[1])]

    def some(connection, client):
        for name in names[client::CLIENTS]:
            remove(connection, name)

    if by_clients(CLIENTS, some):
        sys.exit("VMs were not deleted")


def busy(pid):
    """Nanoseconds on a CPU of all threads."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as file:
            total += int(file.read().split()[0])
    return total


def lists(pid, times):
    # The long list is the last: it takes ten times the CPU of the others, and what follows it finds cold caches.
    paths = {"nodes": "/nodes", "tag": f"{NODES}?tag=job=1", "objects": "/v1/objects/vm"}
    connections = {kind: Connection(kind) for kind in ("unix", "tcp")}
    print("kilobytes", len(connections["unix"].request("GET", "/nodes")[1]) // 1024)
    rest(pid)
    for name, path in paths.items():
        turns = {kind: [] for kind in connections}
        before = busy(pid)
        for _ in range(TURNS):
            for kind, connection in connections.items():
                turns[kind].append([requested(connection, path) for _ in range(times)])
        print(f"{name}_cpu {(busy(pid) - before) / 1e6 / (2 * TURNS * times):.2f}")
        for kind, of_kind in turns.items():
            for part, number in (("p50", 0.5), ("p99", 0.99)):
                value = statistics.median(percentile(values, number) for values in of_kind)
                print(f"{name}_{kind}_{part} {value:.2f}")
    burnt = [percentile([elapsed(burn) for _ in range(times)], 0.99) for _ in range(TURNS)]
    print(f"burnt_p99 {statistics.median(burnt):.2f}")


def rest(pid):
    """Waits until the daemon has completed what the VMs created before have caused."""
    for _ in range(30):
        before = busy(pid)
        time.sleep(1)
        if busy(pid) - before < 2_000_000:
            return
    sys.exit("the daemon does not come to rest")


def requested(connection, path):
    """Milliseconds."""
    begin = time.perf_counter()
    status, _ = connection.request("GET", path)
    took = (time.perf_counter() - begin) * 1000
    assert status == 200, status
    return took


def burn():
    """About 4 ms of CPU: its p99 is what the machine adds to anything of this length."""
    total = 0
    for number in range(60_000):
        total += number
    return total


class Ready:
    """A watch, opened before the VM is added, by which it is known when a VM is Ready."""

    def __init__(self):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(60)
        self.stream.connect(SOCKET)
        self.stream.sendall(b"GET /v1/watch?kinds=vm HTTP/1.1\r\nhost: x\r\n\r\n")
        self.text = b""
        while not any(b'"SYNCED"' in line for line in self.lines()):
            pass

    def lines(self):
        text = self.stream.recv(1 << 18) or sys.exit("the watch has ended")
        *lines, self.text = (self.text + text).split(b"\n")
        return [line for line in lines if line.startswith(b'{"type":')]

    def of(self, name):
        """Returns when the VM is Ready."""
        name = b'"name":"%s"' % name.encode()
        while not any(name in line and b'"ready":true' in line for line in self.lines()):
            pass


def answers(times):
    """Milliseconds. A create is answered when its VM is Ready; `vm add` without --wait when its VM is stored."""
    connection, ready = Connection(), Ready()
    created, added, reconciled = [], [], []
    for number in range(times):
        begin = time.perf_counter()
        name = create(connection, [])
        created.append((time.perf_counter() - begin) * 1000)
        ready.of(name)
        remove(connection, name)
        begin = time.perf_counter()
        status, body = connection.request("POST", "/v1/groups/bench0/vms", {})
        added.append((time.perf_counter() - begin) * 1000)
        assert status == 201, (status, body)
        name = json.loads(body)["name"]
        ready.of(name)
        reconciled.append((time.perf_counter() - begin) * 1000)
        remove(connection, name)
    for name, values in (("create", created), ("added", added), ("reconciled", reconciled)):
        print(f"{name} {statistics.median(values):.2f}")
    print(f"beyond {statistics.median(created) - statistics.median(reconciled):.2f}")


def output(command):
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


def left():
    """What the host and the directories have."""
    connection = Connection()
    leases = sorted(lease["ip"] for lease in json.loads(connection.request("GET", "/v1/objects/lease")[1])["items"])
    # The database and the journal of the boot are files of their own; their sizes are measured.
    return str(leases) + output(f"ls /run/netns; ip -o link | cut -d: -f2 | sort; iptables-save | grep -c ^-A; find /run/slice | sort; ls {STATE}")


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def kilobytes(path):
    return int(output(f"du -sk --apparent-size {path}").split()[0])


def rounds(pid, times, count, clients):
    connection = Connection()
    remove(connection, create(connection, []))
    time.sleep(3)
    before, errors, seconds, after = left(), 0, [], []
    for turn in range(times):

        def some(connection, client):
            for number in range(client, count, clients):
                remove(connection, create(connection, [f"name=r{turn}x{number}"]))

        begin = time.perf_counter()
        errors += by_clients(clients, some)
        seconds.append(time.perf_counter() - begin)
        time.sleep(5)
        after.append((resident(pid), descriptors(pid), kilobytes(STATE)))
        print(f"resident_{turn} {after[-1][0]}")
    now = left()
    if now != before:
        print(before, now, file=sys.stderr)
    print("rate", round(count / statistics.median(seconds)))
    print("errors", errors)
    print("left", int(now != before))
    print("descriptors", after[-1][1] - after[0][1])
    # The allocator keeps and returns pages as it likes, so the sizes of single rounds say little.
    sizes = [size for size, _, _ in after]
    print(f"growth {statistics.linear_regression(range(times), sizes).slope:.0f}")
    print("state_growth", after[-1][2] - after[-2][2])


verb, pid, *numbers = sys.argv[1:]
numbers = [int(number) for number in numbers]
if verb == "create":
    create_all(*numbers)
elif verb == "delete":
    delete_all()
elif verb == "lists":
    lists(pid, *numbers)
elif verb == "answers":
    answers(*numbers)
else:
    rounds(pid, *numbers)
