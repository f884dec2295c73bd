// A CNI plugin with a run time that does not grow with the number of attachments, in contrast to Debian's plugins, which list all existing
// rules and reservations. ADD creates a veth with an inner end named CNI_IFNAME and the next address of 10.99.0.0/16; DEL deletes
// it. Implements CNI 1.0.0. The number of attachments created so far is in /run/flat.
// Start it only in temporary network and mount namespaces, as benches/run.sh does.
#include "netlink.h"

#include <stdint.h>
#include <sys/file.h>

static const char *told(const char *key) {
  const char *value = getenv(key);
  must(value != NULL, key);
  return value;
}

// Returns the number of the next attachment.
static uint64_t count(void) {
  uint64_t made = 0;
  int file = open("/run/flat", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  must(file >= 0 && !flock(file, LOCK_EX), "/run/flat");
  must(read(file, &made, sizeof made) >= 0, "/run/flat");
  made++;
  must(pwrite(file, &made, sizeof made, 0) == sizeof made, "/run/flat");
  close(file);
  return made;
}

// With IPv6, the kernel iterates over all links when a link is set up.
static void without_ipv6(const char *link) {
  char path[64];
  snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", link);
  int file = open(path, O_WRONLY | O_CLOEXEC);
  must(write(file, "1", 1) == 1, path);
  close(file);
}

static void add(void) {
  unsigned number = count();
  char outside[IFNAMSIZ], ip[INET_ADDRSTRLEN];
  snprintf(outside, sizeof outside, "flat%u", number);
  snprintf(ip, sizeof ip, "10.99.%u.%u", number >> 8 & 255, number & 255);
  const char *ifname = told("CNI_IFNAME"), *netns = told("CNI_NETNS");
  int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), far = open(netns, O_RDONLY | O_CLOEXEC);
  int out = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  must(far >= 0 && !setns(far, CLONE_NEWNET), netns);
  int in = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  veth(in, ifname, outside, home);
  int index = if_nametoindex(ifname);
  address(in, index, ip, 16), up(in, index);
  must(!setns(home, CLONE_NEWNET), "setns");
  without_ipv6(outside);
  up(out, if_nametoindex(outside));
  printf("{\"cniVersion\": \"1.0.0\", \"interfaces\": [{\"name\": \"%s\"}, {\"name\": \"%s\", \"sandbox\": \"%s\"}],"
         " \"ips\": [{\"address\": \"%s/16\", \"gateway\": \"10.99.0.1\", \"interface\": 1}]}\n",
         outside, ifname, netns, ip);
}

// Not an error if the attachment does not exist.
static void del(void) {
  const char *netns = getenv("CNI_NETNS");
  int far = netns ? open(netns, O_RDONLY | O_CLOEXEC) : -1;
  if (far < 0 || setns(far, CLONE_NEWNET)) return;
  struct request r;
  struct ifinfomsg link = {.ifi_index = if_nametoindex(told("CNI_IFNAME"))};
  if (!link.ifi_index) return;
  int sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  begin(&r, RTM_DELLINK, 0, &link, sizeof link);
  ask(sock, &r, "del");
}

int main(void) {
  const char *command = told("CNI_COMMAND");
  if (!strcmp(command, "ADD")) add();
  if (!strcmp(command, "DEL")) del();
  if (!strcmp(command, "VERSION")) puts("{\"cniVersion\": \"1.0.0\", \"supportedVersions\": [\"1.0.0\"]}");
}
