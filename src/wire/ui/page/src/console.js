// The serial console of a VM: what it has written, and what it writes.

import { chunks, pause, request, session } from "./api.js";
import { h, setText } from "./dom.js";
import { whenLive } from "./store.js";
import { openTerminal, scrollKeys } from "./terminal.js";

const LINES = 1000;
/** Bytes that the terminal may have before it has shown them. */
const AHEAD = 256 << 10;

/** Shows the console of a VM in `panel` until the signal is aborted. */
export function showConsole(panel, vm, signal) {
  const status = h("p", { className: "hint", role: "status" }, "Connecting …");
  const reader = h("input", { type: "checkbox", id: "reader" });
  const place = h("div", { className: "screen" });
  panel.replaceChildren(
    h("div", { className: "bar" }, status, h("label", { htmlFor: "reader" }, reader, " Screen reader")),
    place,
  );
  const { terminal, dispose } = openTerminal(place, { label: `Console of ${vm}, read-only`, readOnly: true });
  scrollKeys(terminal);
  reader.addEventListener("change", () => {
    terminal.options.screenReaderMode = reader.checked;
  });
  signal.addEventListener("abort", dispose);
  follow(vm, terminal, status, AbortSignal.any([signal, session()]));
}

async function follow(vm, terminal, status, signal) {
  let offset = null;
  let delay = 500;
  const name = encodeURIComponent(vm);
  while (!signal.aborted) {
    await whenLive(signal);
    if (signal.aborted) return;
    const from = offset === null ? `lines=${LINES}` : `offset=${offset}`;
    try {
      const response = await request("GET", `/v1/logs/${name}?follow=true&${from}`, signal);
      setText(status, "Live. Read-only: use the shell, or slicectl console, to type.");
      offset = Number(response.headers.get("x-log-offset")) || 0;
      const began = Date.now();
      for await (const bytes of chunks(response)) {
        if (signal.aborted) return;
        offset += bytes.length;
        await write(terminal, bytes);
      }
      if (Date.now() - began > 5000) delay = 500;
    } catch (error) {
      if (signal.aborted) return;
      if (error.status >= 400 && error.status < 500 && error.status !== 429) {
        setText(status, error.message);
        return;
      }
    }
    if (signal.aborted) return;
    setText(status, "Reconnecting …");
    await pause(delay, signal);
    delay = Math.min(2 * delay, 15_000);
  }
}

let waiting = 0;

/** Writes; waits if the terminal is behind, so that a guest that writes without end does not fill the memory. */
function write(terminal, bytes) {
  waiting += bytes.length;
  return new Promise((resolve) => {
    const behind = waiting > AHEAD;
    terminal.write(bytes, () => {
      waiting -= bytes.length;
      if (behind) resolve();
    });
    if (!behind) resolve();
  });
}
