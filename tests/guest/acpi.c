// As much ACPI as it takes to find Cloud Hypervisor's event device, whose address is nowhere but in the DSDT's byte code.
// Out of scope: what is done with it.
#include "tiny.h"

struct __attribute__((packed)) table { char kind[4]; uint32_t bytes; uint8_t rest[28]; };
enum { ROOT_XSDT = 24, FADT_DSDT = 140 };

static uint64_t word64(const void *at) {
    uint64_t value;
    copy(&value, at, sizeof value);
    return value;
}

// The XSDT's table of that kind (ACPI 6.5, 5.2.8), or NULL.
static const struct table *find_table(const struct table *xsdt, const char *kind) {
    const uint8_t *entry = (const uint8_t *)(xsdt + 1), *end = (const uint8_t *)xsdt + xsdt->bytes;
    for (; entry < end; entry += 8) {
        const struct table *table = (const struct table *)word64(entry);
        if (same(table->kind, kind, 4))
            return table;
    }
    return NULL;
}

uint64_t find_event_device(uint64_t root) {
    // OperationRegion(GDST, SystemMemory, 64 bits of address; 20.2.5.2).
    static const uint8_t region[] = {0x5b, 0x80, 'G', 'D', 'S', 'T', 0, 0x0e};
    if (!root)
        return 0;
    const struct table *fadt = find_table((const struct table *)word64((const uint8_t *)root + ROOT_XSDT), "FACP");
    if (!fadt)
        return 0;
    const struct table *dsdt = (const struct table *)word64((const uint8_t *)fadt + FADT_DSDT);
    const uint8_t *end = (const uint8_t *)dsdt + dsdt->bytes - sizeof region - 8;
    for (const uint8_t *at = (const uint8_t *)(dsdt + 1); at <= end; at++)
        if (same(at, region, sizeof region))
            return word64(at + sizeof region);
    return 0;
}
