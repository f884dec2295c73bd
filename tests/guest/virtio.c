// Virtio devices (Virtual I/O Device, version 1.2), over MMIO (modern and legacy) or PCI (modern): found, their first two queues used.
// Out of scope: what is in the buffers.
#include "tiny.h"

enum { NO_INTERRUPT = 1, DEVICE_WRITES = 2 };

// ---- MMIO, section 4.2

enum {
    MAGIC = 0, VERSION = 4, DEVICE = 8, FEATURES_PICK = 0x14, DRIVER_FEATURES = 0x20, DRIVER_FEATURES_PICK = 0x24,
    PAGE_SIZE = 0x28, QUEUE_PICK = 0x30, QUEUE_SIZE = 0x38, QUEUE_ALIGN = 0x3c, QUEUE_PAGE = 0x40, QUEUE_READY = 0x44,
    NOTIFY = 0x50, STATUS = 0x70, QUEUE_DESCRIPTORS = 0x80, QUEUE_AVAILABLE = 0x90, QUEUE_USED = 0xa0, CONFIG = 0x100,
};
#define REG(offset) device->mmio[(offset) / 4]

static bool is_of(uint32_t kind, uint64_t at) {
    const volatile uint32_t *registers = (const volatile uint32_t *)at;
    return registers[MAGIC / 4] == 0x74726976 && registers[DEVICE / 4] == kind;
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
static uint64_t on_command_line(uint32_t kind) {
    char value[64];
    for (int nth = 0; find_word("virtio_mmio.device=", nth, value, sizeof value); nth++) {
        const char *at = value;
        while (*at && *at != '@')
            at++;
        if (at[0] == '@' && at[1] == '0') {
            at += 3;
            uint64_t address = parse_hex(&at);
            if (is_of(kind, address))
                return address;
        }
    }
    return 0;
}

// QEMU's microvm with ACPI: include/hw/i386/microvm.h.
static uint64_t on_microvm(uint32_t kind) {
    for (uint64_t at = 0xfeb00000; at < 0xfeb03000; at += 0x200)
        if (is_of(kind, at))
            return at;
    return 0;
}

// ---- PCI, section 4.1

#define COMMON(type, offset) (*(volatile type *)(device->pci.common + (offset)))
enum {
    C_FEATURES_PICK = 8, C_FEATURES = 12, C_STATUS = 20, C_QUEUE = 22, C_QUEUE_SIZE = 24, C_QUEUE_READY = 28,
    C_NOTIFY_OFFSET = 30, C_DESCRIPTORS = 32, C_AVAILABLE = 40, C_USED = 48,
};

static uint64_t bar_of(int slot, int number) {
    uint32_t low = pci_read(slot, 0, 0x10 + 4 * number);
    uint64_t high = (low & 6) == 4 ? pci_read(slot, 0, 0x14 + 4 * number) : 0;
    return high << 32 | (low & ~15u);
}

static bool on_pci(struct device *device, uint32_t kind) {
    const uint32_t modern = (0x1040 + kind) << 16 | 0x1af4, transitional_card = 0x10001af4;
    int slot = 0;
    for (uint32_t id; id = pci_read(slot, 0, 0), id != modern && (kind != CARD || id != transitional_card);)
        if (++slot == 32)
            return false;
    pci_write(slot, 0, 4, (pci_read(slot, 0, 4) & 0xffff) | 6); // memory, bus master
    for (int at = pci_read(slot, 0, 0x34) & 0xff; at;) {
        uint32_t head = pci_read(slot, 0, at);
        if ((head & 0xff) == 9) { // of the vendor
            uint64_t place = bar_of(slot, pci_read(slot, 0, at + 4) & 0xff) + pci_read(slot, 0, at + 8);
            switch (head >> 24) {
            case 1: device->pci.common = (volatile uint8_t *)reach(place); device->at = place; break;
            case 2:
                device->pci.notify = (volatile uint8_t *)reach(place);
                device->pci.multiplier = pci_read(slot, 0, at + 16);
                break;
            case 4: device->pci.config = (volatile uint8_t *)reach(place); break;
            }
        }
        at = head >> 8 & 0xff;
    }
    return device->pci.common && device->pci.notify && device->pci.config;
}

// ---- Both

static void set_status(struct device *device, uint8_t status) {
    if (device->bus == PCI)
        COMMON(uint8_t, C_STATUS) = status;
    else
        REG(STATUS) = status;
}

static uint8_t status(struct device *device) { return device->bus == PCI ? COMMON(uint8_t, C_STATUS) : REG(STATUS); }

// Half 1: VERSION_1 (bit 32).
static void accept_features(struct device *device, uint32_t half, uint32_t bits) {
    if (device->bus == PCI) {
        COMMON(uint32_t, C_FEATURES_PICK) = half;
        COMMON(uint32_t, C_FEATURES) = bits;
    } else {
        REG(DRIVER_FEATURES_PICK) = half;
        REG(DRIVER_FEATURES) = bits;
    }
}

static void notify(struct device *device, int number) {
    fence();
    if (device->bus == PCI)
        *(volatile uint16_t *)(device->pci.notify + device->pci.offset[number] * device->pci.multiplier) = number;
    else
        REG(NOTIFY) = number;
}

static void tell64(struct device *device, int offset, const volatile void *place) {
    REG(offset) = (uint32_t)(uint64_t)place;
    REG(offset + 4) = 0;
}

static void set_up_queue(struct device *device, int number) {
    struct queue *queue = &device->queues[number];
    queue->available.flags = NO_INTERRUPT;
    if (device->bus == PCI) {
        COMMON(uint16_t, C_QUEUE) = number;
        COMMON(uint16_t, C_QUEUE_SIZE) = SLOTS;
        COMMON(uint32_t, C_DESCRIPTORS) = (uint32_t)(uint64_t)queue->descriptors;
        COMMON(uint32_t, C_DESCRIPTORS + 4) = 0;
        COMMON(uint32_t, C_AVAILABLE) = (uint32_t)(uint64_t)&queue->available;
        COMMON(uint32_t, C_AVAILABLE + 4) = 0;
        COMMON(uint32_t, C_USED) = (uint32_t)(uint64_t)&queue->used;
        COMMON(uint32_t, C_USED + 4) = 0;
        device->pci.offset[number] = COMMON(uint16_t, C_NOTIFY_OFFSET);
        COMMON(uint16_t, C_QUEUE_READY) = 1;
        return;
    }
    REG(QUEUE_PICK) = number;
    REG(QUEUE_SIZE) = SLOTS;
    if (device->legacy) {
        REG(QUEUE_ALIGN) = 4096;
        REG(QUEUE_PAGE) = (uint64_t)queue / 4096;
        return;
    }
    tell64(device, QUEUE_DESCRIPTORS, queue->descriptors);
    tell64(device, QUEUE_AVAILABLE, &queue->available);
    tell64(device, QUEUE_USED, &queue->used);
    REG(QUEUE_READY) = 1;
}

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

static bool negotiate(struct device *device, uint32_t features) {
    set_status(device, 0);
    set_status(device, ACKNOWLEDGE);
    set_status(device, ACKNOWLEDGE | DRIVER);
    accept_features(device, 0, features);
    if (device->legacy) {
        REG(PAGE_SIZE) = 4096;
        return true;
    }
    accept_features(device, 1, 1);
    set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    return status(device) & FEATURES_OK;
}

enum found find_device(struct device *device, uint32_t kind, uint32_t features) {
    if ((device->at = on_command_line(kind)))
        device->bus = MMIO;
    else if (on_pci(device, kind))
        device->bus = PCI;
    else if ((device->at = on_microvm(kind)))
        device->bus = MMIO;
    else
        return MISSING;
    if (device->bus == MMIO)
        device->mmio = (volatile uint32_t *)device->at;
    device->legacy = device->bus == MMIO && REG(VERSION) == 1;
    if (negotiate(device, features))
        return FOUND;
    device->bus = NO_BUS;
    return REFUSED;
}

uint8_t config_of(const struct device *device, int offset) {
    return device->bus == PCI ? device->pci.config[offset] : ((volatile uint8_t *)device->mmio)[CONFIG + offset];
}

void start_device(struct device *device, int queues) {
    struct queue *queue = &device->queues[RECEIVE];
    for (int slot = 0; slot < SLOTS; slot++) {
        queue->descriptors[slot] = (struct descriptor){(uint64_t)device->incoming[slot], BUFFER, DEVICE_WRITES, 0};
        queue->available.ring[slot] = slot;
    }
    for (int number = 0; number < queues; number++)
        set_up_queue(device, number);
    device->lent = -1;
    queue->available.index = SLOTS;
    set_status(device, status(device) | DRIVER_OK);
    notify(device, RECEIVE);
}

const uint8_t *receive(struct device *device, size_t *bytes) {
    struct queue *queue = &device->queues[RECEIVE];
    if (device->bus == NO_BUS)
        return NULL;
    if (device->lent >= 0) {
        queue->available.ring[queue->available.index % SLOTS] = device->lent;
        fence();
        queue->available.index++;
        notify(device, RECEIVE);
        device->lent = -1;
    }
    if (queue->used.index == device->seen)
        return NULL;
    fence();
    int slot = queue->used.ring[device->seen % SLOTS].id;
    *bytes = queue->used.ring[device->seen % SLOTS].bytes;
    device->lent = slot;
    device->seen++;
    return device->incoming[slot];
}

// Nobody waits for a device to have sent something. (Spinning with `pause` would keep QEMU's main loop, which does the sending, from the
// lock that it needs.)
uint8_t *outgoing(struct device *device) {
    bool full = (uint16_t)(device->sent - device->queues[TRANSMIT].used.index) >= SLOTS;
    return device->bus == NO_BUS || full ? NULL : device->outgoing[device->sent % SLOTS];
}

void transmit(struct device *device, size_t bytes) {
    struct queue *queue = &device->queues[TRANSMIT];
    int slot = device->sent % SLOTS;
    queue->descriptors[slot] = (struct descriptor){(uint64_t)device->outgoing[slot], bytes, 0, 0};
    queue->available.ring[slot] = slot;
    fence();
    queue->available.index = ++device->sent;
    notify(device, TRANSMIT);
}
