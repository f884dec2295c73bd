// Ports, the serial line, memory, time.
// Out of scope: the network card, the power button.
#include <stdarg.h>

#include "tiny.h"

enum { COM1 = 0x3f8, LINE_STATUS = COM1 + 5, DATA_READY = 1, ROOM = 0x20 };

// A VMM whose reader is slow holds ROOM back; one without reader must not stop us for ever.
static void put(char byte) {
    for (int patience = 100000; !(in8(LINE_STATUS) & ROOM) && patience; patience--)
        ;
    out8(COM1, byte);
}

static void put_number(uint32_t number, uint32_t base) {
    char digits[10];
    int count = 0;
    do
        digits[count++] = "0123456789abcdef"[number % base];
    while (number /= base);
    while (count)
        put(digits[--count]);
}

static void put_address(uint32_t address) {
    for (int shift = 24; shift >= 0; shift -= 8) {
        put_number(address >> shift & 0xff, 10);
        if (shift)
            put('.');
    }
}

void say(const char *format, ...) {
    va_list values;
    va_start(values, format);
    for (; *format; format++) {
        if (*format == '\n')
            put('\r');
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            for (const char *text = va_arg(values, const char *); *text; text++)
                put(*text);
            break;
        case 'i': put_address(va_arg(values, uint32_t)); break;
        case 'x': put_number(va_arg(values, uint32_t), 16); break;
        }
    }
    va_end(values);
}

int hear(void) {
    uint8_t status = in8(LINE_STATUS);
    return status != 0xff && (status & DATA_READY) ? in8(COM1) : -1;
}

extern uint64_t far_pages[512];

volatile void *reach(uint64_t physical) {
    static int used;
    const uint64_t size = 2 << 20, window = 1ull << 39;
    if (physical < 1ull << 32)
        return (volatile void *)physical;
    // Two pages each: what starts at the end of one goes on in the next.
    uint64_t base = physical & ~(size - 1);
    int page = used;
    used += 2;
    far_pages[page] = base | 0x83;
    far_pages[page + 1] = (base + size) | 0x83;
    return (volatile void *)(window + page * size + (physical - base));
}

static void pci_point(int device, int function, int offset) {
    out32(0xcf8, 1u << 31 | device << 11 | function << 8 | (offset & ~3));
}

uint32_t pci_read(int device, int function, int offset) {
    pci_point(device, function, offset);
    return in32(0xcfc);
}

void pci_write(int device, int function, int offset, uint32_t value) {
    pci_point(device, function, offset);
    out32(0xcfc, value);
}

// Intel SDM volume 3, "Gate Descriptors in 64-bit mode"; 0x8e: an interrupt gate that is present.
struct gate { uint16_t low, selector; uint8_t stack, kind; uint16_t middle; uint32_t high, zero; };
static struct gate gates[256];
struct __attribute__((packed)) table { uint16_t limit; uint64_t base; };

enum { TICK = 32, SPURIOUS = 255 };
static volatile uint32_t *const apic = (volatile uint32_t *)0xfee00000;

void start_ticking(void) {
    extern char tick[], fault[];
    for (int number = 0; number < 256; number++) {
        uint64_t handler = (uint64_t)(number < TICK ? fault : tick);
        gates[number] = (struct gate){handler, 8, 0, 0x8e, handler >> 16, handler >> 32, 0};
    }
    struct table table = {sizeof gates - 1, (uint64_t)gates};
    __asm__ volatile("lidt %0" : : "m"(table));
    // The old interrupt controllers keep quiet.
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    apic[0xf0 / 4] = 0x100 | SPURIOUS;
    apic[0x3e0 / 4] = 0xb;              // divide by 1: QEMU's and KVM's clock is then 1 GHz
    apic[0x320 / 4] = 0x20000 | TICK;   // periodic
    tick_every(1000);
}

void tick_every(uint32_t microseconds) { apic[0x380 / 4] = microseconds * 1000; }

void on_fault(void) { say("tiny: an exception\n"); }

void crash(void) {
    struct table nothing = {0, 0};
    __asm__ volatile("lidt %0; ud2" : : "m"(nothing));
}

void copy(void *to, const void *from, size_t bytes) {
    uint8_t *t = to;
    for (const uint8_t *f = from; bytes--;)
        *t++ = *f++;
}

bool same(const void *one, const void *other, size_t bytes) {
    for (const uint8_t *a = one, *b = other; bytes--;)
        if (*a++ != *b++)
            return false;
    return true;
}

// gcc may call these for assignments of structures.
void *memcpy(void *to, const void *from, size_t bytes) { copy(to, from, bytes); return to; }
void *memset(void *at, int value, size_t bytes) {
    for (uint8_t *byte = at; bytes--;)
        *byte++ = value;
    return at;
}
