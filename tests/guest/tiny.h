// What the files of the tiny guest say to each other.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// ---- machine.c: ports, the serial line, memory, time

static inline void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out16(uint16_t port, uint16_t value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out32(uint16_t port, uint32_t value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline uint8_t in8(uint16_t port) { uint8_t value; __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline uint16_t in16(uint16_t port) { uint16_t value; __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline uint32_t in32(uint16_t port) { uint32_t value; __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }
// Nothing before it is seen after what comes after it.
static inline void fence(void) { __asm__ volatile("lock; addl $0, (%%rsp)" : : : "memory"); }

// Prints; `%s` a string, `%i` an IPv4 address (uint32_t, host order), `%x` 32 bits.
void say(const char *format, ...);
// A byte from the serial line, or -1.
int hear(void);
// Somewhere to reach physical memory by, up to 2 MiB from there; below 4 GiB that is the address itself.
volatile void *reach(uint64_t physical);
// A word of the configuration space of a function on PCI bus 0.
uint32_t pci_read(int device, int function, int offset);
void pci_write(int device, int function, int offset, uint32_t value);
// Starts the timer.
void start_ticking(void);
// How long nap() naps from now on.
void tick_every(uint32_t microseconds);
// Sleeps until the next tick.
void nap(void);
// Resets the processor by a triple fault.
void crash(void);
void copy(void *to, const void *from, size_t bytes);
bool same(const void *one, const void *other, size_t bytes);

// ---- words.c: what we were told

struct words {
    char name[64];          // host name; `tiny` unless told
    uint32_t ip, gateway;   // host order, 0: none
    bool crash, deaf, off, flood, dial;
    uint64_t acpi;          // where its root pointer is, 0: not told
};
// From the kernel command line, and from the text of an initrd.
void read_words(struct words *words, const void *start_info, const void *boot_params);
// The n-th value of `key=value`, up to a blank; false: there are not so many.
bool find_word(const char *key, int nth, char *value, size_t room);

// ---- power.c: the button

// After the network card was found: where that is tells which machine this is.
void find_button(const struct words *words);
bool button_pressed(void);
_Noreturn void power_off(void);

// ---- acpi.c

// The address of Cloud Hypervisor's event device, or 0.
uint64_t find_event_device(uint64_t root);

// ---- virtio.c: devices

enum bus { NO_BUS, MMIO, PCI };
// Firecracker requires 64 KiB of receive buffers before it delivers a frame.
enum { SLOTS = 64, BUFFER = 1600, RECEIVE = 0, TRANSMIT = 1, QUEUES = 3 };
struct descriptor { uint64_t at; uint32_t bytes; uint16_t flags, next; };
// The used ring has a page of its own, as the legacy layout wants it with an alignment of 4096.
struct queue {
    struct descriptor descriptors[SLOTS];
    volatile struct { uint16_t flags, index, ring[SLOTS]; } available;
    volatile struct { uint16_t flags, index; struct { uint32_t id, bytes; } ring[SLOTS]; } used __attribute__((aligned(4096)));
} __attribute__((aligned(4096)));
struct device {
    struct queue queues[QUEUES];
    uint8_t incoming[SLOTS][BUFFER], outgoing[SLOTS][BUFFER];
    enum bus bus;
    bool legacy;
    uint64_t at;
    volatile uint32_t *mmio;
    struct { volatile uint8_t *common, *notify, *config; uint32_t multiplier, offset[QUEUES]; } pci;
    uint16_t seen, sent;
    int lent;
};
enum { CARD = 1 };
// Looks for a device of this type and agrees on features with it.
enum found { FOUND, MISSING, REFUSED };
enum found find_device(struct device *device, uint32_t kind, uint32_t features);
// A byte of its configuration.
uint8_t config_of(const struct device *device, int offset);
void start_device(struct device *device, int queues);
// What the device has written, or NULL; valid until the next call.
const uint8_t *receive(struct device *device, size_t *bytes);
// The buffer for what transmit() sends; NULL: the device has not read the earlier ones.
uint8_t *outgoing(struct device *device);
void transmit(struct device *device, size_t bytes);

// ---- card.c: the network card

#define FRAME_MAX 1526
extern struct device card;
extern uint8_t mac[6];
// Looks for a network card and starts it; on failure says why.
void find_card(void);
// A frame that has come without its header, or NULL; valid until the next call.
const uint8_t *receive_frame(size_t *bytes);
void transmit_frame(const uint8_t *frame, size_t bytes);

// ---- vsock.c: echo

// If there is a device. `dial`: requests one connection to the host.
void vsock_start(bool dial);
// Answers a packet that has come; false: there is none.
bool vsock_poll(void);

// ---- net.c: ARP and ICMP echo

void net_start(const struct words *words);
// Answers the frame that has come, if it is for us.
enum heard { NOTHING, OTHERS, OURS };
enum heard net_poll(void);
// So many microseconds have passed: asks the gateway, often until it answers, then once a second.
void net_tick(uint32_t passed);
// Whether the gateway answers our pings.
bool net_is_ready(void);
