// The network card (Virtual I/O Device, version 1.2, section 5.1).
// Out of scope: what is in the frames.
#include "tiny.h"

struct device card;
uint8_t mac[6];

// struct virtio_net_hdr before each frame, always all zero: 12 bytes, of which a legacy card without MRG_RXBUF knows 10.
static size_t header = 12;

enum { MAC = 1 << 5 };

void find_card(void) {
    switch (find_device(&card, CARD, MAC)) {
    case MISSING: say("tiny: no network card\n"); return;
    case REFUSED: say("tiny: the network card refuses our features\n"); return;
    case FOUND: break;
    }
    if (card.legacy)
        header = 10;
    for (int i = 0; i < 6; i++)
        mac[i] = config_of(&card, i);
    start_device(&card, 2);
}

const uint8_t *receive_frame(size_t *bytes) {
    const uint8_t *buffer = receive(&card, bytes);
    if (!buffer)
        return NULL;
    *bytes = *bytes > header ? *bytes - header : 0;
    return buffer + header;
}

// A card that is too far behind loses frames.
void transmit_frame(const uint8_t *frame, size_t bytes) {
    uint8_t *buffer = outgoing(&card);
    if (!buffer)
        return;
    copy(buffer + header, frame, bytes);
    transmit(&card, header + bytes);
}
