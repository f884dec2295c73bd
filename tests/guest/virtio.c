// A virtio network card (Virtual I/O Device, version 1.2), over MMIO (modern and legacy) or PCI (modern).
// Out of scope: what is in the frames.
#include "tiny.h"

struct card card;

// ---- Queues. The used ring has a page of its own, as the legacy layout wants it with an alignment of 4096.

enum { SLOTS = 64, RECEIVE = 0, TRANSMIT = 1, DEVICE_WRITES = 2, NO_INTERRUPT = 1 };
struct descriptor { uint64_t at; uint32_t bytes; uint16_t flags, next; };
struct queue {
    struct descriptor descriptors[SLOTS];
    volatile struct { uint16_t flags, index, ring[SLOTS]; } available;
    volatile struct { uint16_t flags, index; struct { uint32_t id, bytes; } ring[SLOTS]; } used __attribute__((aligned(4096)));
} __attribute__((aligned(4096)));

static struct queue queues[2];
// Firecracker wants 64 KiB posted before it delivers anything.
enum { BUFFER = 1600 };
static uint8_t incoming[SLOTS][BUFFER], outgoing[SLOTS][BUFFER];
// struct virtio_net_hdr before each frame, always all zero: 12 bytes, of which a legacy card without MRG_RXBUF knows 10.
static size_t header = 12;
static uint16_t seen, sent;

// ---- MMIO, section 4.2

static volatile uint32_t *mmio;
enum {
    MAGIC = 0, VERSION = 4, DEVICE = 8, FEATURES_PICK = 0x14, DRIVER_FEATURES = 0x20, DRIVER_FEATURES_PICK = 0x24,
    PAGE_SIZE = 0x28, QUEUE_PICK = 0x30, QUEUE_SIZE = 0x38, QUEUE_ALIGN = 0x3c, QUEUE_PAGE = 0x40, QUEUE_READY = 0x44,
    NOTIFY = 0x50, STATUS = 0x70, QUEUE_DESCRIPTORS = 0x80, QUEUE_AVAILABLE = 0x90, QUEUE_USED = 0xa0, CONFIG = 0x100,
};
#define REG(offset) mmio[(offset) / 4]

static bool is_card(uint64_t at) {
    const volatile uint32_t *registers = (const volatile uint32_t *)at;
    return registers[MAGIC / 4] == 0x74726976 && registers[DEVICE / 4] == 1;
}

static uint64_t parse_hex(const char **text) {
    uint64_t number = 0;
    for (;; (*text)++) {
        char c = **text | 0x20;
        if (c >= '0' && c <= '9')
            number = number << 4 | (c - '0');
        else if (c >= 'a' && c <= 'f')
            number = number << 4 | (c - 'a' + 10);
        else
            return number;
    }
}

// virtio_mmio.device=SIZE@ADDRESS:IRQ, as often as there are devices (drivers/virtio/virtio_mmio.c).
static uint64_t on_command_line(void) {
    char value[64];
    for (int nth = 0; find_word("virtio_mmio.device=", nth, value, sizeof value); nth++) {
        const char *at = value;
        while (*at && *at != '@')
            at++;
        if (at[0] == '@' && at[1] == '0') {
            at += 3;
            uint64_t address = parse_hex(&at);
            if (is_card(address))
                return address;
        }
    }
    return 0;
}

// QEMU's microvm with ACPI: include/hw/i386/microvm.h.
static uint64_t on_microvm(void) {
    for (uint64_t at = 0xfeb00000; at < 0xfeb03000; at += 0x200)
        if (is_card(at))
            return at;
    return 0;
}

// ---- PCI, section 4.1

static struct { volatile uint8_t *common, *notify, *config; uint32_t multiplier, offset[2]; } pci;
#define COMMON(type, offset) (*(volatile type *)(pci.common + (offset)))
enum {
    C_FEATURES_PICK = 8, C_FEATURES = 12, C_STATUS = 20, C_QUEUE = 22, C_QUEUE_SIZE = 24, C_QUEUE_READY = 28,
    C_NOTIFY_OFFSET = 30, C_DESCRIPTORS = 32, C_AVAILABLE = 40, C_USED = 48,
};

static uint64_t bar_of(int device, int number) {
    uint32_t low = pci_read(device, 0, 0x10 + 4 * number);
    uint64_t high = (low & 6) == 4 ? pci_read(device, 0, 0x14 + 4 * number) : 0;
    return high << 32 | (low & ~15u);
}

static bool on_pci(void) {
    int device = 0;
    // Modern, or transitional.
    for (uint32_t id; id = pci_read(device, 0, 0), id != 0x10411af4 && id != 0x10001af4;)
        if (++device == 32)
            return false;
    pci_write(device, 0, 4, (pci_read(device, 0, 4) & 0xffff) | 6); // memory, bus master
    for (int at = pci_read(device, 0, 0x34) & 0xff; at;) {
        uint32_t head = pci_read(device, 0, at);
        if ((head & 0xff) == 9) { // of the vendor
            uint64_t place = bar_of(device, pci_read(device, 0, at + 4) & 0xff) + pci_read(device, 0, at + 8);
            switch (head >> 24) {
            case 1: pci.common = (volatile uint8_t *)reach(place); card.at = place; break;
            case 2:
                pci.notify = (volatile uint8_t *)reach(place);
                pci.multiplier = pci_read(device, 0, at + 16);
                break;
            case 4: pci.config = (volatile uint8_t *)reach(place); break;
            }
        }
        at = head >> 8 & 0xff;
    }
    return pci.common && pci.notify && pci.config;
}

// ---- Both

static void set_status(uint8_t status) {
    if (card.bus == PCI)
        COMMON(uint8_t, C_STATUS) = status;
    else
        REG(STATUS) = status;
}

static uint8_t status(void) { return card.bus == PCI ? COMMON(uint8_t, C_STATUS) : REG(STATUS); }

// Half 0: MAC (bit 5). Half 1: VERSION_1 (bit 32).
static void accept_features(uint32_t half, uint32_t bits) {
    if (card.bus == PCI) {
        COMMON(uint32_t, C_FEATURES_PICK) = half;
        COMMON(uint32_t, C_FEATURES) = bits;
    } else {
        REG(DRIVER_FEATURES_PICK) = half;
        REG(DRIVER_FEATURES) = bits;
    }
}

static void notify(int number) {
    fence();
    if (card.bus == PCI)
        *(volatile uint16_t *)(pci.notify + pci.offset[number] * pci.multiplier) = number;
    else
        REG(NOTIFY) = number;
}

static void tell64(int offset, const volatile void *place) {
    REG(offset) = (uint32_t)(uint64_t)place;
    REG(offset + 4) = 0;
}

static void set_up_queue(int number, bool legacy) {
    struct queue *queue = &queues[number];
    queue->available.flags = NO_INTERRUPT;
    if (card.bus == PCI) {
        COMMON(uint16_t, C_QUEUE) = number;
        COMMON(uint16_t, C_QUEUE_SIZE) = SLOTS;
        COMMON(uint32_t, C_DESCRIPTORS) = (uint32_t)(uint64_t)queue->descriptors;
        COMMON(uint32_t, C_DESCRIPTORS + 4) = 0;
        COMMON(uint32_t, C_AVAILABLE) = (uint32_t)(uint64_t)&queue->available;
        COMMON(uint32_t, C_AVAILABLE + 4) = 0;
        COMMON(uint32_t, C_USED) = (uint32_t)(uint64_t)&queue->used;
        COMMON(uint32_t, C_USED + 4) = 0;
        pci.offset[number] = COMMON(uint16_t, C_NOTIFY_OFFSET);
        COMMON(uint16_t, C_QUEUE_READY) = 1;
        return;
    }
    REG(QUEUE_PICK) = number;
    REG(QUEUE_SIZE) = SLOTS;
    if (legacy) {
        REG(QUEUE_ALIGN) = 4096;
        REG(QUEUE_PAGE) = (uint64_t)queue / 4096;
        return;
    }
    tell64(QUEUE_DESCRIPTORS, queue->descriptors);
    tell64(QUEUE_AVAILABLE, &queue->available);
    tell64(QUEUE_USED, &queue->used);
    REG(QUEUE_READY) = 1;
}

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

static bool negotiate(bool legacy) {
    set_status(0);
    set_status(ACKNOWLEDGE);
    set_status(ACKNOWLEDGE | DRIVER);
    accept_features(0, 1 << 5);
    if (legacy) {
        header = 10;
        REG(PAGE_SIZE) = 4096;
        return true;
    }
    accept_features(1, 1);
    set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    return status() & FEATURES_OK;
}

bool find_card(void) {
    if ((card.at = on_command_line()))
        card.bus = MMIO;
    else if (on_pci())
        card.bus = PCI;
    else if ((card.at = on_microvm()))
        card.bus = MMIO;
    else {
        say("tiny: no network card\n");
        return false;
    }
    if (card.bus == MMIO)
        mmio = (volatile uint32_t *)card.at;
    bool legacy = card.bus == MMIO && REG(VERSION) == 1;
    if (!negotiate(legacy)) {
        say("tiny: the network card refuses our features\n");
        card.bus = NO_CARD;
        return false;
    }
    for (int i = 0; i < 6; i++)
        card.mac[i] = card.bus == PCI ? pci.config[i] : ((volatile uint8_t *)mmio)[CONFIG + i];
    for (int slot = 0; slot < SLOTS; slot++) {
        queues[RECEIVE].descriptors[slot] = (struct descriptor){(uint64_t)incoming[slot], BUFFER, DEVICE_WRITES, 0};
        queues[RECEIVE].available.ring[slot] = slot;
    }
    set_up_queue(RECEIVE, legacy);
    set_up_queue(TRANSMIT, legacy);
    queues[RECEIVE].available.index = SLOTS;
    set_status(status() | DRIVER_OK);
    notify(RECEIVE);
    return true;
}

const uint8_t *receive(size_t *bytes) {
    static int lent = -1;
    struct queue *queue = &queues[RECEIVE];
    if (card.bus == NO_CARD)
        return NULL;
    if (lent >= 0) {
        queue->available.ring[queue->available.index % SLOTS] = lent;
        fence();
        queue->available.index++;
        notify(RECEIVE);
        lent = -1;
    }
    if (queue->used.index == seen)
        return NULL;
    fence();
    lent = queue->used.ring[seen % SLOTS].id;
    size_t length = queue->used.ring[seen % SLOTS].bytes;
    seen++;
    *bytes = length > header ? length - header : 0;
    return incoming[lent] + header;
}

// Nobody waits for a card to have sent something: one that is that far behind loses frames. (Spinning with `pause` would keep
// QEMU's main loop, which does the sending, from the lock that it needs.)
void transmit(const uint8_t *frame, size_t bytes) {
    struct queue *queue = &queues[TRANSMIT];
    int slot = sent % SLOTS;
    if (card.bus == NO_CARD || (uint16_t)(sent - queue->used.index) >= SLOTS)
        return;
    copy(outgoing[slot] + header, frame, bytes);
    queue->descriptors[slot] = (struct descriptor){(uint64_t)outgoing[slot], header + bytes, 0, 0};
    queue->available.ring[slot] = slot;
    fence();
    queue->available.index = ++sent;
    notify(TRANSMIT);
}
