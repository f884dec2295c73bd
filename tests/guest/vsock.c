// The vsock device (Virtual I/O Device, version 1.2, section 5.10): echoes what connections to one port send, refuses all others.
// Out of scope: the credit of the host, which reads what it has sent before it sends more than it can receive.
#include "tiny.h"

enum { VSOCK = 19, HOST = 2, ECHO_PORT = 7000, DIAL_PORT = 7001, HOST_PORT = 516, STREAM = 1, CONNECTIONS = 8 };
enum { REQUEST = 1, RESPONSE = 2, RESET = 3, SHUTDOWN = 4, DATA = 5, CREDIT_UPDATE = 6, CREDIT_REQUEST = 7 };
enum { BOTH_SIDES = 3 };

struct __attribute__((packed)) packet {
    uint64_t from, to;
    uint32_t from_port, to_port, bytes;
    uint16_t type, operation;
    uint32_t flags, window, consumed;
    uint8_t data[];
};

static struct device device;
static uint64_t cid;
static struct connection { uint32_t port, consumed; bool open; } connections[CONNECTIONS];

static void reply(uint8_t *buffer, const struct packet *to, uint16_t operation, uint32_t consumed, const uint8_t *data, size_t bytes) {
    struct packet *packet = (struct packet *)buffer;
    *packet = (struct packet){
        .from = cid, .to = HOST, .from_port = to->to_port, .to_port = to->from_port, .bytes = bytes,
        .type = STREAM, .operation = operation, .window = 1 << 16, .consumed = consumed,
        .flags = operation == SHUTDOWN ? BOTH_SIDES : 0,
    };
    copy(packet->data, data, bytes);
    transmit(&device, sizeof *packet + bytes);
}

static struct connection *connection_of(uint32_t port) {
    for (int i = 0; i < CONNECTIONS; i++)
        if (connections[i].open && connections[i].port == port)
            return &connections[i];
    return NULL;
}

static struct connection *connect(uint32_t port) {
    for (int i = 0; i < CONNECTIONS; i++)
        if (!connections[i].open) {
            connections[i] = (struct connection){port, 0, true};
            return &connections[i];
        }
    return NULL;
}

static void on_echo(uint8_t *buffer, const struct packet *packet, size_t bytes) {
    struct connection *connection = connection_of(packet->from_port);
    if (packet->operation == REQUEST && !connection && (connection = connect(packet->from_port))) {
        reply(buffer, packet, RESPONSE, 0, NULL, 0);
        return;
    }
    if (!connection) {
        if (packet->operation != RESET)
            reply(buffer, packet, RESET, 0, NULL, 0);
        return;
    }
    switch (packet->operation) {
    case DATA:
        if (packet->bytes > bytes - sizeof *packet)
            break;
        connection->consumed += packet->bytes;
        reply(buffer, packet, DATA, connection->consumed, packet->data, packet->bytes);
        return;
    case CREDIT_UPDATE: return;
    case CREDIT_REQUEST: reply(buffer, packet, CREDIT_UPDATE, connection->consumed, NULL, 0); return;
    case RESET: connection->open = false; return;
    }
    // What the host has closed is closed; anything else is not expected.
    connection->open = false;
    reply(buffer, packet, RESET, 0, NULL, 0);
}

void vsock_start(bool dial) {
    if (find_device(&device, VSOCK, 0) != FOUND)
        return;
    for (int i = 0; i < 8; i++)
        cid |= (uint64_t)config_of(&device, i) << 8 * i;
    start_device(&device, 3);
    say("tiny: vsock %x\n", (uint32_t)cid);
    uint8_t *buffer = outgoing(&device);
    if (dial && buffer)
        reply(buffer, &(struct packet){.to_port = DIAL_PORT, .from_port = HOST_PORT}, REQUEST, 0, NULL, 0);
}

bool vsock_poll(void) {
    size_t bytes;
    // What cannot be answered now is not received now.
    uint8_t *buffer = outgoing(&device);
    const struct packet *packet = buffer ? (const struct packet *)receive(&device, &bytes) : NULL;
    if (!packet)
        return false;
    if (bytes < sizeof *packet)
        return true;
    if (packet->to_port == DIAL_PORT)
        say("tiny: the host %s a connection\n", packet->operation == RESPONSE ? "accepts" : "refuses");
    else if (packet->to_port == ECHO_PORT)
        on_echo(buffer, packet, bytes);
    else if (packet->operation != RESET)
        reply(buffer, packet, RESET, 0, NULL, 0);
    return true;
}
