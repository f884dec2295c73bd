// What we were told: on the kernel command line, and in an initrd that is plain text.
// Out of scope: doing it.
#include "tiny.h"

// Both texts, a blank between them.
static char told[4096];

// Xen's arch-x86/hvm/start_info.h.
struct start_info { uint32_t magic, version, flags, modules; uint64_t module_list, command_line, rsdp; };
struct module { uint64_t at, bytes, command_line, reserved; };

static void append(const char *text, size_t bytes) {
    size_t end = 0;
    while (told[end])
        end++;
    for (; bytes && *text && end < sizeof told - 2; bytes--, text++)
        told[end++] = *text < ' ' ? ' ' : *text;
    told[end] = ' ';
}

static void collect(const struct start_info *start, const uint8_t *boot_params) {
    if (start && start->magic == 0x336ec578) {
        if (start->command_line)
            append((const char *)start->command_line, 2048);
        const struct module *list = (const struct module *)start->module_list;
        for (uint32_t i = 0; list && i < start->modules; i++)
            append((const char *)list[i].at, list[i].bytes);
    } else if (boot_params) {
        // struct boot_params: cmd_line_ptr, ramdisk_image, ramdisk_size (Documentation/arch/x86/boot.rst).
        const uint32_t *line = (const uint32_t *)(boot_params + 0x228), *disk = (const uint32_t *)(boot_params + 0x218);
        if (*line)
            append((const char *)(uint64_t)*line, 2048);
        if (disk[0])
            append((const char *)(uint64_t)disk[0], disk[1]);
    }
}

bool find_word(const char *key, int nth, char *value, size_t room) {
    for (const char *at = told; *at;) {
        const char *k = key;
        while (*k && *at == *k)
            at++, k++;
        if (!*k && nth-- == 0) {
            size_t length = 0;
            while (at[length] && at[length] != ' ' && length < room - 1) {
                value[length] = at[length];
                length++;
            }
            value[length] = 0;
            return true;
        }
        while (*at && *at != ' ')
            at++;
        while (*at == ' ')
            at++;
    }
    return false;
}

// 0 for nothing and for nonsense.
static uint32_t parse_address(const char *text) {
    uint32_t address = 0;
    for (int part = 0; part < 4; part++) {
        uint32_t number = 0;
        if (*text < '0' || *text > '9')
            return 0;
        while (*text >= '0' && *text <= '9')
            number = number * 10 + (*text++ - '0');
        if (number > 255 || (part < 3 && *text++ != '.'))
            return 0;
        address = address << 8 | number;
    }
    return address;
}

// ip=CLIENT:SERVER:GATEWAY:MASK:NAME:DEVICE:… (Documentation/admin-guide/nfs/nfsroot.rst).
static void read_ip(struct words *words, char *value) {
    char *fields[5] = {"", "", "", "", ""};
    for (int field = 0; field < 5; field++) {
        fields[field] = value;
        while (*value && *value != ':')
            value++;
        if (*value)
            *value++ = 0;
    }
    words->ip = parse_address(fields[0]);
    words->gateway = parse_address(fields[2]);
    size_t length = 0;
    while (fields[4][length] && length < sizeof words->name - 1) {
        words->name[length] = fields[4][length];
        length++;
    }
    if (length)
        words->name[length] = 0;
}

static bool is(const char *one, const char *other) {
    while (*one && *one == *other)
        one++, other++;
    return *one == *other;
}

void read_words(struct words *words, const void *start_info, const void *boot_params) {
    char value[256];
    collect(start_info, boot_params);
    const struct start_info *start = start_info;
    words->acpi = start ? start->rsdp : 0;
    copy(words->name, "tiny", 5);
    if (find_word("ip=", 0, value, sizeof value))
        read_ip(words, value);
    for (int nth = 0; find_word("tiny=", nth, value, sizeof value); nth++) {
        words->crash |= is(value, "crash");
        words->deaf |= is(value, "deaf");
        words->off |= is(value, "off");
        words->flood |= is(value, "flood");
        words->dial |= is(value, "dial");
    }
}
