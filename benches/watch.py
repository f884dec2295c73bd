"""Watches of sliced: what they cost at rest, and what a change costs that all of them receive. Prints `name value` lines.

watch.py rest PID WATCHES           CPU time and wake-ups of the daemon in 10 s, without watches and with them
watch.py fanout PID WATCHES TIMES   from one change until the first and the last watch have received it
watch.py changes PID WATCHES COMMAND...   runs the command, and waits until every watch has received the same last change
"""

import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time

SOCKET = os.environ["SLICE_SOCKET"]


def scheduled(pid):
    """Nanoseconds on a CPU, and the number of times at one, of all threads (sched-stats.rst) but those of the store: these wait with a
    timeout of a second, whatever happens."""
    total, runs = 0, 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/comm") as file:
                if file.read().startswith("sled"):
                    continue
            with open(f"/proc/{pid}/task/{task}/schedstat") as file:
                numbers = file.read().split()
        except FileNotFoundError:
            continue
        total += int(numbers[0])
        runs += int(numbers[2])
    return total, runs


class Watch:
    def __init__(self):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.connect(SOCKET)
        self.stream.sendall(b"GET /v1/watch?events=true HTTP/1.1\r\nhost: x\r\n\r\n")
        self.text, self.lines, self.last, self.found = b"", 0, b"", b""
        while not self.last.startswith(b'{"type":"SYNCED"'):
            self.read()
        self.lines = 0

    def read(self):
        text = self.stream.recv(1 << 18)
        assert text, "the watch has ended"
        *lines, self.text = (self.text + text).split(b"\n")
        for line in lines:
            # Other lines are the head of the response and sizes of chunks.
            if line.startswith(b'{"type":'):
                assert not line.startswith(b'{"type":"ERROR"'), line
                self.lines += 1
                self.last = line
                # The last line about a VM: an event may follow it.
                self.found = line if b'"kind":"Vm"' in line else self.found


def version(line):
    return line.split(b'"resource_version":"')[1].split(b'"')[0]


def receive(watches, until, patience=60.0):
    """Reads until all watches have received the same and nothing follows for half a second."""
    waiting = selectors.DefaultSelector()
    for watch in watches:
        waiting.register(watch.stream, selectors.EVENT_READ, watch)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        ready = waiting.select(0.5)
        for key, _ in ready:
            key.data.read()
        same = len({version(watch.last) for watch in watches}) == 1
        if not ready and same and until():
            return
    sys.exit("the watches have not received the same")


def rest(pid, count):
    def used():
        # The deadline of the head of a request is a timer of 10 s, which ends once also if the head has been received.
        time.sleep(12)
        before = scheduled(pid)
        time.sleep(10)
        return [after - start for after, start in zip(scheduled(pid), before)]

    without = used()
    watches = [Watch() for _ in range(count)]
    used_with = used()
    print("rest_without", without[0], "\nruns_without", without[1])
    print("rest_with", used_with[0], "\nruns_with", used_with[1])
    assert all(watch.lines == 0 for watch in watches)


def request(method, path, body):
    """The bytes of a response; each on a connection of its own."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(SOCKET)
        text = json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        stream.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(text) + text)
        answer = b""
        while part := stream.recv(1 << 18):
            answer += part
    assert b" 20" in answer.split(b"\r\n")[0], answer
    return answer.split(b"\r\n\r\n", 1)[1]


def fanout(count, times):
    """Other tags of a VM are one change; each watch has a line with the new tag."""
    created = json.loads(request("POST", "/hostgroup/fan/nodes", {"tags": ["turn=none"]}))
    path = f"/vm/{created['hostname']}/tags"
    watches = [Watch() for _ in range(count)]
    waiting = selectors.DefaultSelector()
    for watch in watches:
        waiting.register(watch.stream, selectors.EVENT_READ, watch)
    firsts, lasts = [], []
    for turn in range(times):
        pattern = b'"turn":"t%d"' % turn
        begin, first, left = time.perf_counter(), None, set(watches)
        request("PATCH", path, {"replace": [f"turn=t{turn}"]})
        while left:
            ready = waiting.select(10.0) or sys.exit("a watch has received nothing")
            for key, _ in ready:
                key.data.read()
                if key.data in left and pattern in key.data.found:
                    left.remove(key.data)
                    first = first or time.perf_counter() - begin
        lasts.append(time.perf_counter() - begin)
        firsts.append(first)
    print(f"fanout_first {statistics.median(firsts) * 1000:.2f}\nfanout_last {statistics.median(lasts) * 1000:.2f}")


def changes(pid, count, command):
    watches = [Watch() for _ in range(count)]
    before, begin = scheduled(pid)[0], time.monotonic()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    ended = []

    def is_complete():
        if running.poll() is not None and not ended:
            ended.append(time.monotonic() - begin)
        return bool(ended)

    if watches:
        receive(watches, is_complete)
    else:
        running.wait()
        is_complete()
        time.sleep(1)
    assert running.returncode == 0, running.returncode
    print("lines", watches[0].lines if watches else 0)
    print("cpu", scheduled(pid)[0] - before)
    print("command", int(ended[0] * 1e6))
    assert len({watch.lines for watch in watches}) <= 1


if sys.argv[1] == "rest":
    rest(sys.argv[2], int(sys.argv[3]))
elif sys.argv[1] == "fanout":
    fanout(int(sys.argv[3]), int(sys.argv[4]))
else:
    changes(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
