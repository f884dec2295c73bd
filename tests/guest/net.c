// ARP (RFC 826) and ICMP echo (RFC 792): answers both, and pings the gateway for ever.
// Out of scope: how frames come and go.
#include "tiny.h"

enum { ARP_REQUEST = 1, ARP_REPLY = 2, ECHO_REPLY = 0, ECHO_REQUEST = 8, PROTOCOL_ICMP = 1 };

struct __attribute__((packed)) ethernet { uint8_t to[6], from[6]; uint16_t kind; };
struct __attribute__((packed)) arp {
    struct ethernet link;
    uint16_t hardware, protocol; uint8_t sizes[2]; uint16_t operation;
    uint8_t from_mac[6]; uint32_t from; uint8_t to_mac[6]; uint32_t to;
};
struct __attribute__((packed)) icmp {
    struct ethernet link;
    uint8_t version, service; uint16_t length, id, fragment; uint8_t life, protocol; uint16_t sum; uint32_t from, to;
    uint8_t type, code; uint16_t icmp_sum, echo_id, echo_number;
    uint8_t data[];
};
enum { IP_BYTES = 20, ICMP_BYTES = 8, MINIMUM = 60, PINGED = 8 };

static uint32_t ip, gateway; // network order, as all below
static const char *name;
static uint8_t gateway_mac[6];
// Whether gateway_mac is filled in; whether it has answered our pings lately.
static bool known, ready;
static uint32_t unanswered, wait; // wait: microseconds
static uint8_t out[FRAME_MAX];

static uint16_t swap16(uint16_t value) { return __builtin_bswap16(value); }

// RFC 1071; the answer is in network order as the data is.
static uint16_t checksum(const void *data, size_t bytes) {
    uint32_t sum = 0;
    const uint8_t *byte = data;
    for (size_t i = 0; i < bytes; i++)
        sum += (uint32_t)byte[i] << (i & 1 ? 8 : 0);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

static void send(size_t bytes) {
    for (; bytes < MINIMUM; bytes++)
        out[bytes] = 0;
    transmit_frame(out, bytes);
}

static void send_arp(uint16_t operation, const uint8_t *to_mac, uint32_t to) {
    struct arp *arp = (struct arp *)out;
    static const uint8_t nobody[6], everybody[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    copy(arp->link.to, to_mac ? to_mac : everybody, 6);
    copy(arp->link.from, mac, 6);
    arp->link.kind = swap16(0x0806);
    arp->hardware = swap16(1);
    arp->protocol = swap16(0x0800);
    arp->sizes[0] = 6;
    arp->sizes[1] = 4;
    arp->operation = swap16(operation);
    copy(arp->from_mac, mac, 6);
    arp->from = ip;
    copy(arp->to_mac, to_mac ? to_mac : nobody, 6);
    arp->to = to;
    send(sizeof *arp);
}

static void ping_gateway(void) {
    struct icmp *ping = (struct icmp *)out;
    *ping = (struct icmp){
        .link.kind = swap16(0x0800),
        .version = 0x45, .length = swap16(IP_BYTES + ICMP_BYTES + PINGED), .life = 64, .protocol = PROTOCOL_ICMP,
        .from = ip, .to = gateway,
        .type = ECHO_REQUEST, .echo_id = swap16(0x7419), .echo_number = swap16(1),
    };
    copy(ping->link.to, gateway_mac, 6);
    copy(ping->link.from, mac, 6);
    copy(ping->data, "tinytiny", PINGED);
    ping->sum = checksum(&ping->version, IP_BYTES);
    ping->icmp_sum = checksum(&ping->type, ICMP_BYTES + PINGED);
    send(sizeof *ping + PINGED);
}

static void on_arp(const struct arp *arp) {
    if (arp->operation == swap16(ARP_REQUEST))
        send_arp(ARP_REPLY, arp->from_mac, arp->from);
    if (arp->operation == swap16(ARP_REPLY) && arp->from == gateway && !known) {
        copy(gateway_mac, arp->from_mac, 6);
        known = true;
        wait = 0;
        net_tick(0);
    }
}

static void on_icmp(const struct icmp *icmp, size_t bytes) {
    size_t length = swap16(icmp->length);
    if (icmp->version != 0x45 || icmp->protocol != PROTOCOL_ICMP)
        return;
    if (length < IP_BYTES + ICMP_BYTES || length + sizeof icmp->link > bytes)
        return;
    if (icmp->type == ECHO_REPLY && icmp->from == gateway) {
        unanswered = 0;
        if (!ready)
            say("ready %s %i\n", name, __builtin_bswap32(ip));
        ready = true;
    }
    if (icmp->type != ECHO_REQUEST)
        return;
    struct icmp *answer = (struct icmp *)out;
    copy(answer, icmp, length + sizeof icmp->link);
    copy(answer->link.to, icmp->link.from, 6);
    copy(answer->link.from, mac, 6);
    answer->from = ip;
    answer->to = icmp->from;
    answer->life = 64;
    answer->sum = 0;
    answer->sum = checksum(&answer->version, IP_BYTES);
    answer->type = ECHO_REPLY;
    answer->icmp_sum = 0;
    answer->icmp_sum = checksum(&answer->type, length - IP_BYTES);
    send(length + sizeof icmp->link);
}

void net_start(const struct words *words) {
    ip = __builtin_bswap32(words->ip);
    gateway = __builtin_bswap32(words->gateway);
    name = words->name;
    if (!ip || !gateway)
        say("tiny: no %s on the command line\n", ip ? "gateway" : "address");
    net_tick(0);
}

enum heard net_poll(void) {
    size_t bytes;
    const uint8_t *frame = receive_frame(&bytes);
    if (!frame)
        return NOTHING;
    uint16_t kind = bytes < sizeof(struct ethernet) ? 0 : swap16(((const struct ethernet *)frame)->kind);
    const struct arp *arp = (const struct arp *)frame;
    if (kind == 0x0806 && bytes >= sizeof *arp && arp->to == ip) {
        on_arp(arp);
        return OURS;
    }
    const struct icmp *icmp = (const struct icmp *)frame;
    if (kind == 0x0800 && bytes >= sizeof *icmp && icmp->to == ip) {
        on_icmp(icmp, bytes);
        return OURS;
    }
    return OTHERS;
}

void net_tick(uint32_t passed) {
    enum { SOON = 50000, LATER = 1000000, PATIENCE = 3 };
    if (!ip || !gateway)
        return;
    wait -= passed < wait ? passed : wait;
    if (wait)
        return;
    if (unanswered++ >= PATIENCE) {
        if (ready)
            say("lost %s %i\n", name, __builtin_bswap32(gateway));
        unanswered = 0;
        known = ready = false;
    }
    if (known)
        ping_gateway();
    else
        send_arp(ARP_REQUEST, NULL, gateway);
    wait = ready ? LATER : SOON;
}

bool net_is_ready(void) { return ready; }
