// The power button, and turning ourselves off.
// Out of scope: when.
#include "tiny.h"

// How a machine is told from another: by where its network card is, and by its host bridge.
static enum { PLAIN, QEMU_MICROVM, QEMU_Q35, CLOUD_HYPERVISOR } machine;

// QEMU's include/hw/i386/microvm.h: the generic event device and its registers to sleep and reset.
static volatile uint32_t *const ged = (volatile uint32_t *)0xfea00000;
static volatile uint8_t *const ged_sleep = (volatile uint8_t *)0xfea00200;
enum { GED_BUTTON = 2, SLEEP_S5 = 5 << 2 | 1 << 5 };

// q35 as its firmware leaves it; ICH9 datasheet, "Power Management I/O Registers".
enum { PM_STATUS = 0x600, PM_ENABLE = 0x602, PM_CONTROL = 0x604, PM_BUTTON = 1 << 8, PM_SLEEP = 1 << 13 };
// Cloud Hypervisor's devices/src/acpi.rs.
static volatile uint8_t *ch_events;
enum { CH_SHUTDOWN = 0x600, CH_BUTTON = 8 };

enum { KEYBOARD = 0x60, KEYBOARD_STATUS = 0x64, KEYBOARD_RESET = 0xfe };

void find_button(const struct words *words) {
    if (card.bus == MMIO && card.at >> 20 == 0xfeb)
        machine = QEMU_MICROVM;
    else if (card.bus == PCI && pci_read(0, 0, 0) == 0x29c08086)
        machine = QEMU_Q35;
    else if (card.bus == PCI && pci_read(0, 0, 0) == 0x0d578086)
        machine = CLOUD_HYPERVISOR;
    // QEMU sets the status of an enabled button alone.
    if (machine == QEMU_Q35)
        out16(PM_ENABLE, PM_BUTTON);
    uint64_t events = machine == CLOUD_HYPERVISOR ? find_event_device(words->acpi) : 0;
    if (events)
        ch_events = reach(events);
}

// Any key is the button: of the keyboard Firecracker knows ctrl-alt-del alone.
static bool key_pressed(void) {
    uint8_t status = in8(KEYBOARD_STATUS);
    if (status == 0xff || !(status & 1))
        return false;
    in8(KEYBOARD);
    return true;
}

bool button_pressed(void) {
    switch (machine) {
    case QEMU_MICROVM: return *ged & GED_BUTTON; // reading clears
    case QEMU_Q35:
        if (!(in16(PM_STATUS) & PM_BUTTON))
            return false;
        out16(PM_STATUS, PM_BUTTON); // writing clears
        return true;
    case CLOUD_HYPERVISOR: return ch_events && (*ch_events & CH_BUTTON); // reading clears
    case PLAIN: break;
    }
    return key_pressed();
}

_Noreturn void power_off(void) {
    switch (machine) {
    case QEMU_MICROVM: *ged_sleep = SLEEP_S5; break;
    case QEMU_Q35: out16(PM_CONTROL, PM_SLEEP); break;
    case CLOUD_HYPERVISOR: out8(CH_SHUTDOWN, SLEEP_S5); break;
    case PLAIN: break;
    }
    // It takes effect some time later, and a reset would overtake it. Where there is nothing to turn off, a reset ends the VMM.
    for (int naps = machine == PLAIN ? 0 : 100; naps; naps--)
        nap();
    out8(KEYBOARD_STATUS, KEYBOARD_RESET);
    for (;;)
        __asm__ volatile("cli; hlt");
}
