// The rtnetlink functions of the benchmarks. Any failure ends the program.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
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

// Creates a veth: `inside` in this namespace, its peer `outside` in the namespace `far`.
static void veth(int sock, const char *inside, const char *outside, int far) {
  struct request r;
  struct ifinfomsg none = {0};
  begin(&r, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &none, sizeof none);
  put(&r, IFLA_IFNAME, inside, strlen(inside) + 1);
  struct rtattr *info = put(&r, IFLA_LINKINFO, NULL, 0);
  put(&r, IFLA_INFO_KIND, "veth", 4);
  struct rtattr *data = put(&r, IFLA_INFO_DATA, NULL, 0);
  struct rtattr *peer = put(&r, VETH_INFO_PEER, NULL, 0);
  memcpy(end_of(&r), &none, sizeof none);
  r.head.nlmsg_len += sizeof none;
  put(&r, IFLA_IFNAME, outside, strlen(outside) + 1);
  put(&r, IFLA_NET_NS_FD, &far, sizeof far);
  close_nest(&r, peer), close_nest(&r, data), close_nest(&r, info);
  ask(sock, &r, "veth");
}

static void up(int sock, int index) {
  struct request r;
  struct ifinfomsg link = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
  begin(&r, RTM_NEWLINK, 0, &link, sizeof link);
  ask(sock, &r, "link up");
}

static void address(int sock, int index, const char *text, int prefix) {
  struct request r;
  struct in_addr ip;
  struct ifaddrmsg a = {.ifa_family = AF_INET, .ifa_prefixlen = prefix, .ifa_index = index};
  inet_pton(AF_INET, text, &ip);
  begin(&r, RTM_NEWADDR, NLM_F_CREATE, &a, sizeof a);
  put(&r, IFA_LOCAL, &ip, sizeof ip);
  put(&r, IFA_ADDRESS, &ip, sizeof ip);
  ask(sock, &r, "address");
}
