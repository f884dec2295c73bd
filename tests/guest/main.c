// A guest for tests: answers, says that it is ready, echoes what it hears, stops when asked, or misbehaves as told.
#include "tiny.h"

// Microseconds. While something happens we look a thousand times a second, at rest twenty times: dozens of us share a processor.
enum { AWAKE = 1000, AT_REST = 50000, DROWSY_AFTER = 20 };

// Lines come back as `heard: LINE`.
static void echo(void) {
    static char line[128];
    static size_t length;
    for (int byte; (byte = hear()) >= 0;) {
        if (byte == '\r' || byte == '\n') {
            line[length] = 0;
            if (length)
                say("heard: %s\n", line);
            length = 0;
        } else if (length < sizeof line - 1)
            line[length++] = byte;
    }
}

static void leave(const char *name, const char *why) {
    say("tiny: %s powers off%s\n", name, why);
    power_off();
}

void main(const void *start_info, const void *boot_params) {
    static struct words words;
    read_words(&words, start_info, boot_params);
    say("tiny: %s starts\n", words.name);
    if (words.crash) {
        say("tiny: %s crashes\n", words.name);
        crash();
    }
    start_ticking();
    find_card();
    find_button(&words);
    net_start(&words);
    vsock_start(words.dial);
    for (int quiet = 0;; quiet++) {
        // What others on a bridge ask of each other is heard by dozens of us: nobody wakes up for it.
        for (enum heard heard; (heard = net_poll()) != NOTHING;)
            quiet = heard == OURS ? 0 : quiet;
        while (vsock_poll())
            quiet = 0;
        echo();
        if (button_pressed()) {
            if (!words.deaf)
                leave(words.name, "");
            say("tiny: %s ignores the button\n", words.name);
        }
        if (words.off && net_is_ready())
            leave(words.name, " by itself");
        if (words.flood)
            say("tiny: %s floods, and floods, and floods, and floods, and floods, and floods, and floods\n", words.name);
        if (quiet == 0)
            tick_every(AWAKE);
        if (quiet == DROWSY_AFTER)
            tick_every(AT_REST);
        if (!words.flood)
            nap();
        net_tick(quiet < DROWSY_AFTER || words.flood ? AWAKE : AT_REST);
    }
}
