// A replacement for QEMU that starts instantly: prints a version, opens the TAP of its arguments, serves qmp.sock in its working
// directory, and ends at a power-down request. So the start time of a VM is that of the daemon alone.
// Out of scope: a guest.
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int open_tap(const char *arguments) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    const char *name = strstr(arguments, "ifname=") + strlen("ifname=");
    memcpy(request.ifr_name, name, strcspn(name, ","));
    int tap = open("/dev/net/tun", O_RDWR);
    return ioctl(tap, TUNSETIFF, &request) ? -1 : tap;
}

static void say(int to, const char *text) {
    if (write(to, text, strlen(text)) < 0)
        perror("write");
}

// Serves a client until it disconnects (0) or requests a power-down (1).
static int serve(int client) {
    char said[4096];
    ssize_t length;
    say(client, "{\"QMP\":{\"version\":{},\"capabilities\":[]}}\n");
    while ((length = read(client, said, sizeof said - 1)) > 0) {
        said[length] = 0;
        say(client, "{\"return\":{}}\n");
        if (strstr(said, "system_powerdown"))
            return 1;
    }
    close(client);
    return 0;
}

int main(int count, char **arguments) {
    int tap = -1;
    if (count == 2 && !strcmp(arguments[1], "--version")) {
        puts("QEMU emulator version 7.2.0 (a stand-in)");
        return 0;
    }
    for (int i = 1; i < count; i++)
        if (strstr(arguments[i], "ifname="))
            tap = open_tap(arguments[i]);
    if (tap < 0)
        return 1;
    struct sockaddr_un place = {.sun_family = AF_UNIX, .sun_path = "qmp.sock"};
    int door = socket(AF_UNIX, SOCK_STREAM, 0);
    unlink(place.sun_path);
    if (bind(door, (struct sockaddr *)&place, sizeof place) || listen(door, 4))
        return 1;
    while (!serve(accept(door, NULL, NULL)))
        ;
    return 0;
}
