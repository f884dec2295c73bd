// The kernel's own price of an isolated slot, one after the other in one thread, with nothing around it: a namespace that is
// mounted, a persistent TAP, a veth made with its far end in place, addresses, links up, ip_forward, and one
// iptables-restore. Nobody can be much cheaper. Prints milliseconds.
// Only ever start it in a throw-away network and mount namespace: benches/run.sh does.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void must(int ok, const char *what) {
  if (!ok) {
    perror(what);
    exit(1);
  }
}

struct request {
  struct nlmsghdr head;
  char body[1024];
};

static void *end_of(struct request *r) { return (char *)r + NLMSG_ALIGN(r->head.nlmsg_len); }

static void begin(struct request *r, int type, int flags, const void *body, size_t length) {
  memset(r, 0, sizeof *r);
  r->head.nlmsg_type = type;
  r->head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
  r->head.nlmsg_len = NLMSG_LENGTH(length);
  memcpy(r->body, body, length);
}

static struct rtattr *put(struct request *r, int type, const void *value, size_t length) {
  struct rtattr *a = end_of(r);
  a->rta_type = type;
  a->rta_len = RTA_LENGTH(length);
  if (length) memcpy(RTA_DATA(a), value, length);
  r->head.nlmsg_len = NLMSG_ALIGN(r->head.nlmsg_len) + RTA_ALIGN(a->rta_len);
  return a;
}

static void close_nest(struct request *r, struct rtattr *a) { a->rta_len = (char *)end_of(r) - (char *)a; }

static void ask(int sock, struct request *r, const char *what) {
  char answer[8192];
  must(send(sock, r, r->head.nlmsg_len, 0) >= 0, what);
  must(recv(sock, answer, sizeof answer, 0) >= 0, what);
  struct nlmsgerr *e = NLMSG_DATA((struct nlmsghdr *)answer);
  errno = -e->error;
  must(e->error == 0, what);
}

static void veth(int sock, const char *name, int home) {
  struct request r;
  struct ifinfomsg none = {0};
  begin(&r, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &none, sizeof none);
  put(&r, IFLA_IFNAME, "up0", 4);
  struct rtattr *info = put(&r, IFLA_LINKINFO, NULL, 0);
  put(&r, IFLA_INFO_KIND, "veth", 4);
  struct rtattr *data = put(&r, IFLA_INFO_DATA, NULL, 0);
  struct rtattr *peer = put(&r, VETH_INFO_PEER, NULL, 0);
  memcpy(end_of(&r), &none, sizeof none);
  r.head.nlmsg_len += sizeof none;
  put(&r, IFLA_IFNAME, name, strlen(name) + 1);
  put(&r, IFLA_NET_NS_FD, &home, sizeof home);
  close_nest(&r, peer), close_nest(&r, data), close_nest(&r, info);
  ask(sock, &r, "veth");
}

static void up(int sock, int index) {
  struct request r;
  struct ifinfomsg link = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
  begin(&r, RTM_NEWLINK, 0, &link, sizeof link);
  ask(sock, &r, "link up");
}

static void address(int sock, int index, const char *text) {
  struct request r;
  struct in_addr ip;
  struct ifaddrmsg a = {.ifa_family = AF_INET, .ifa_prefixlen = 30, .ifa_index = index};
  inet_pton(AF_INET, text, &ip);
  begin(&r, RTM_NEWADDR, NLM_F_CREATE, &a, sizeof a);
  put(&r, IFA_LOCAL, &ip, sizeof ip);
  put(&r, IFA_ADDRESS, &ip, sizeof ip);
  ask(sock, &r, "address");
}

static void tap(void) {
  struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
  strcpy(r.ifr_name, "tap0");
  int fd = open("/dev/net/tun", O_RDWR);
  must(fd >= 0 && !ioctl(fd, TUNSETIFF, &r) && !ioctl(fd, TUNSETPERSIST, 1), "tap");
  close(fd);
}

static void rules(void) {
  static const char text[] =
      "*filter\n:FORWARD DROP [0:0]\n"
      "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n"
      "-A FORWARD -i tap0 -d 192.168.1.0/24 -j DROP\n"
      "-A FORWARD -i tap0 -o up0 -j ACCEPT\nCOMMIT\n"
      "*nat\n-A POSTROUTING -o up0 -j MASQUERADE\nCOMMIT\n";
  int pipes[2], status;
  must(!pipe(pipes), "pipe");
  pid_t child = fork();
  if (!child) {
    dup2(pipes[0], 0);
    close(pipes[1]);
    execlp("iptables-restore", "iptables-restore", "--noflush", NULL);
    _exit(127);
  }
  close(pipes[0]);
  must(write(pipes[1], text, sizeof text - 1) > 0, "rules");
  close(pipes[1]);
  waitpid(child, &status, 0);
  must(status == 0, "iptables-restore");
}

static void slot(int number, int home) {
  char path[64], name[IFNAMSIZ];
  snprintf(path, sizeof path, "/run/netns/floor%d", number);
  snprintf(name, sizeof name, "fl-%d", number);
  close(open(path, O_CREAT | O_RDONLY, 0));
  must(!unshare(CLONE_NEWNET), "unshare");
  must(!mount("/proc/thread-self/ns/net", path, "none", MS_BIND, NULL), "mount");
  int sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  tap();
  veth(sock, name, home);
  up(sock, 1), up(sock, 2), up(sock, 3);
  address(sock, 2, "10.0.0.1"), address(sock, 3, "169.254.100.2");
  int gate = open("/proc/sys/net/ipv4/ip_forward", O_WRONLY);
  must(write(gate, "1", 1) == 1, "ip_forward");
  close(gate);
  rules();
  close(sock);
  must(!setns(home, CLONE_NEWNET), "setns");
}

int main(int count, char **words) {
  struct timespec a, b;
  int slots = count > 1 ? atoi(words[1]) : 256;
  int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  clock_gettime(CLOCK_MONOTONIC, &a);
  for (int i = 0; i < slots; i++) slot(i, home);
  clock_gettime(CLOCK_MONOTONIC, &b);
  printf("%.1f\n", (b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) / 1e6);
}
