// Servers on vsock ports of a Linux guest, for tests of the device.
//
//   7000  echo: sends back what it reads, until the end
//   7001  sends "hello", shuts its side down, and counts what it reads; "GUEST vsock counted N" on the console
//   7002  opens connections to the host, as many as the first line says, and sends "refused N other M"
//   7003  reads to the end, then sends one byte
//   7004  sends as many bytes as the first line says
//   7005  writes what it reads to the file /copy, then sends one byte
//   7006  sends the file /copy
//   516   HTTP: answers every request with the health of an agent
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static char buffer[65536];

static struct sockaddr_vm at(unsigned cid, unsigned port) {
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
    return address;
}

static int listening(unsigned port) {
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_vm address = at(VMADDR_CID_ANY, port);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1024)) {
        perror("GUEST vsock");
        exit(1);
    }
    return fd;
}

static int all(int fd, const char *data, size_t length) {
    while (length > 0) {
        ssize_t count = write(fd, data, length);
        if (count <= 0) return -1;
        data += count;
        length -= count;
    }
    return 0;
}

static void echo(int listener) {
    int events = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(events, EPOLL_CTL_ADD, listener, &event);
    while (epoll_wait(events, &event, 1, -1) >= 0 || errno == EINTR) {
        int fd = event.data.fd;
        if (fd == listener) {
            event.data.fd = accept(listener, 0, 0);
            if (event.data.fd >= 0) epoll_ctl(events, EPOLL_CTL_ADD, event.data.fd, &event);
            continue;
        }
        ssize_t count = read(fd, buffer, sizeof buffer);
        if (count <= 0 || all(fd, buffer, count)) close(fd);
    }
}

static void count(int fd) {
    size_t total = 0;
    ssize_t more;
    all(fd, "hello", 5);
    shutdown(fd, SHUT_WR);
    while ((more = read(fd, buffer, sizeof buffer)) > 0) total += more;
    printf("GUEST vsock counted %zu\n", total);
    fflush(stdout);
}

static void drain(int fd) {
    while (read(fd, buffer, sizeof buffer) > 0) {}
    all(fd, "", 1);
}

static void pour(int fd) {
    ssize_t length = read(fd, buffer, 32);
    long left = length > 0 ? atol(buffer) : 0;
    for (; left > 0; left -= (long)sizeof buffer)
        if (all(fd, buffer, left < (long)sizeof buffer ? (size_t)left : sizeof buffer)) return;
}

static void copy(int from, int to) {
    ssize_t count;
    while ((count = read(from, buffer, sizeof buffer)) > 0)
        if (all(to, buffer, count)) return;
}

static void copy_in(int fd) {
    copy(fd, open("/copy", O_WRONLY | O_CREAT | O_TRUNC, 0600));
    all(fd, "", 1);
}

static void copy_out(int fd) { copy(open("/copy", O_RDONLY), fd); }

static void attempt(int fd) {
    int attempts, refused = 0, other = 0;
    ssize_t length = read(fd, buffer, 32);
    attempts = length > 0 ? atoi(buffer) : 0;
    while (attempts-- > 0) {
        int attempt = socket(AF_VSOCK, SOCK_STREAM, 0);
        struct sockaddr_vm host = at(VMADDR_CID_HOST, 1024);
        int failed = connect(attempt, (struct sockaddr *)&host, sizeof host);
        if (failed && errno == ECONNRESET) refused++; else other++;
        close(attempt);
    }
    length = sprintf(buffer, "refused %d other %d\n", refused, other);
    all(fd, buffer, length);
}

static void health(int fd) {
    static const char body[] = "{\"hostname\":\"guest\",\"agent_version\":\"0.0.1\",\"agent_uptime\":1,"
                               "\"system_uptime\":1,\"userdata_ran\":true}";
    size_t length = 0;
    while (length < sizeof buffer - 1) {
        ssize_t more = read(fd, buffer + length, sizeof buffer - 1 - length);
        if (more <= 0) return;
        length += more;
        buffer[length] = 0;
        if (strstr(buffer, "\r\n\r\n")) break;
    }
    length = sprintf(buffer, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                     sizeof body - 1, body);
    all(fd, buffer, length);
}

static void serve(unsigned port, void (*answer)(int)) {
    int listener = listening(port);
    if (fork()) {
        close(listener);
        return;
    }
    for (;;) {
        int fd = accept(listener, 0, 0);
        if (fd < 0) continue;
        if (fork() == 0) {
            answer(fd);
            _exit(0);
        }
        close(fd);
    }
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_IGN);
    serve(7001, count);
    serve(7002, attempt);
    serve(7003, drain);
    serve(7004, pour);
    serve(7005, copy_in);
    serve(7006, copy_out);
    if (access("/no-agent", F_OK)) serve(516, health);
    int listener = listening(7000);
    puts("GUEST vsock ready");
    fflush(stdout);
    echo(listener);
    return 1;
}
