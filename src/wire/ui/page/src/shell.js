// A shell in a guest: a WebSocket with frames of a type, a length and a payload.

import { socket } from "./api.js";
import { h, setText } from "./dom.js";
import { openTerminal } from "./terminal.js";

const DATA = 1;
const WINDOW = 2;
const SHUTDOWN = 3;
const CLOSE = 5;
const EXIT_STATUS = 0x80;
const HEAD = 5;
const DATA_LIMIT = (32 << 10) - HEAD;

function frame(type, payload = new Uint8Array()) {
  const message = new Uint8Array(HEAD + payload.length);
  message[0] = type;
  new DataView(message.buffer).setUint32(1, payload.length);
  message.set(payload, HEAD);
  return message;
}

function windowSize({ cols, rows }) {
  const payload = new Uint8Array(8);
  const view = new DataView(payload.buffer);
  view.setUint32(0, cols);
  view.setUint32(4, rows);
  return frame(WINDOW, payload);
}

/** The type and the payload of a message; `null` if it is invalid. */
function parse(buffer) {
  if (!(buffer instanceof ArrayBuffer) || buffer.byteLength < HEAD) return null;
  const view = new DataView(buffer);
  if (view.getUint32(1) !== buffer.byteLength - HEAD) return null;
  return { type: view.getUint8(0), payload: new Uint8Array(buffer, HEAD) };
}

/** Keys that leave the terminal: those that do not are the guest's, Tab among them. */
function leaves(event) {
  const bracket = event.key === "]" && event.ctrlKey && !event.altKey && !event.metaKey;
  const pane = event.key === "F6" && event.ctrlKey;
  return bracket || pane;
}

/** Offers a shell in `panel`; it ends when the signal is aborted. */
export function showShell(panel, vm, signal) {
  const status = h("p", { className: "hint", role: "status" }, "");
  const toggle = h("button", { type: "button", className: "primary" }, "Open a shell");
  const user = h("input", { type: "text", id: "user", size: 10, placeholder: "default", spellcheck: "false", autocapitalize: "none" });
  const reader = h("input", { type: "checkbox", id: "reader" });
  const place = h("div", { className: "screen", hidden: true });
  let open = null;
  let dispose = () => {};
  panel.replaceChildren(
    h(
      "form",
      { className: "bar", on: { submit: submit } },
      h("label", { htmlFor: "user" }, "User ", user),
      toggle,
      h("label", { htmlFor: "reader" }, reader, " Screen reader"),
      status,
    ),
    place,
    h("p", { className: "hint" }, h("kbd", {}, "Ctrl"), " + ", h("kbd", {}, "]"), " or ", h("kbd", {}, "Ctrl"), " + ", h("kbd", {}, "F6"), " leaves the terminal; all other keys are the guest’s."),
  );
  toggle.type = "submit";
  signal.addEventListener("abort", () => {
    open?.close();
    dispose();
  });

  function submit(event) {
    event.preventDefault();
    if (open) {
      open.close();
      return;
    }
    start();
  }

  function start() {
    dispose();
    place.hidden = false;
    place.replaceChildren();
    setText(status, "Connecting …");
    const query = new URLSearchParams();
    const name = user.value.trim();
    if (name) query.set("user", name);
    let connection = null;
    const transmit = (message) => {
      if (connection?.readyState === WebSocket.OPEN) connection.send(message);
    };
    const send = (bytes) => {
      for (let at = 0; at < bytes.length; at += DATA_LIMIT) transmit(frame(DATA, bytes.subarray(at, at + DATA_LIMIT)));
    };
    const opening = openTerminal(place, {
      label: `Shell in ${vm}`,
      readOnly: false,
      onData: send,
      onResize: (size) => transmit(windowSize(size)),
    });
    const { terminal } = opening;
    dispose = opening.dispose;
    query.set("columns", terminal.cols);
    query.set("rows", terminal.rows);
    terminal.options.screenReaderMode = reader.checked;
    reader.onchange = () => {
      terminal.options.screenReaderMode = reader.checked;
    };
    connection = socket(`/vm/${encodeURIComponent(vm)}/shell?${query}`);
    let opened = false;
    let exit = null;
    terminal.attachCustomKeyEventHandler((event) => {
      if (!leaves(event)) return true;
      event.preventDefault();
      if (event.type === "keydown") toggle.focus();
      return false;
    });
    const closing = () => {
      if (open !== handle) return;
      open = null;
      const focused = place.contains(document.activeElement);
      setText(toggle, "Open a shell");
      terminal.options.disableStdin = true;
      setText(status, exit === null ? (opened ? "Disconnected" : "The guest does not open a shell. Is its agent running?") : `Ended with status ${exit}`);
      if (focused) toggle.focus();
    };
    const handle = {
      close() {
        transmit(frame(SHUTDOWN));
        connection.close();
        closing();
      },
    };
    open = handle;
    connection.addEventListener("open", () => {
      opened = true;
      transmit(windowSize(terminal));
      setText(status, "Connected");
      setText(toggle, "Disconnect");
      terminal.focus();
    });
    connection.addEventListener("message", ({ data }) => {
      const message = parse(data);
      if (message?.type === DATA) terminal.write(message.payload);
      if (message?.type === EXIT_STATUS && message.payload.length === 4) {
        exit = new DataView(data).getInt32(HEAD);
      }
      if (message?.type === CLOSE) connection.close();
    });
    connection.addEventListener("close", closing);
  }
}
