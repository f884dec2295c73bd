// The minimal time that the kernel needs for isolated slots, sequentially in one thread: a mounted namespace, a persistent TAP, a veth
// with its peer created in the namespace, addresses, links up, ip_forward, and one iptables-restore per slot. Prints milliseconds.
// Start it only in temporary network and mount namespaces, as benches/run.sh does.
#include "netlink.h"

#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

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
  veth(sock, "up0", name, home);
  up(sock, 1), up(sock, 2), up(sock, 3);
  address(sock, 2, "10.0.0.1", 30), address(sock, 3, "169.254.100.2", 30);
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
