// A terminal: the policy of the page permits its styles, and its content cannot act outside it.

import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";

const THEME = {
  background: "#11151c",
  foreground: "#e3e8f0",
  cursor: "#e3e8f0",
  cursorAccent: "#11151c",
  selectionBackground: "#3d5a94",
};

const create = Document.prototype.createElement;

/** Makes a style sheet of what xterm.js writes into an element: elements `style` are blocked. */
function styleElement() {
  const sheet = new CSSStyleSheet();
  const element = create.call(document, "span");
  element.hidden = true;
  document.adoptedStyleSheets.push(sheet);
  Object.defineProperty(element, "textContent", { set: (text) => sheet.replaceSync(text), get: () => "" });
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((other) => other !== sheet);
    Element.prototype.remove.call(element);
  };
  return element;
}

/** Attributes `style` are blocked as well; the same text through the object model is not. */
function setAttribute(name, value) {
  if (name === "style") {
    this.style.cssText = value;
  } else {
    Element.prototype.setAttribute.call(this, name, value);
  }
}

// xterm.js takes a document of its own as an option, but uses this one in most places. The page itself makes no styles.
document.createElement = (name, options) => {
  if (name === "style") return styleElement();
  const element = create.call(document, name, options);
  if (name === "span") element.setAttribute = setAttribute;
  return element;
};

/** Sequences that are ignored: title, directory, links, notifications, clipboard and others that mean something to a program outside. */
const IGNORED_OSC = [0, 1, 2, 7, 8, 9, 52, 99, 133, 633, 777, 1337];

/** A terminal in `parent`. Without `onData`, nothing that it answers to a sequence is sent anywhere. */
export function openTerminal(parent, { label, readOnly, onData, onResize }) {
  const terminal = new Terminal({
    disableStdin: readOnly,
    cursorBlink: false,
    cursorInactiveStyle: readOnly ? "none" : "outline",
    convertEol: false,
    fontFamily: 'ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace',
    fontSize: 14,
    scrollback: 5000,
    minimumContrastRatio: 4.5,
    theme: THEME,
    windowOptions: {},
    logLevel: "off",
    linkHandler: { activate: () => {}, allowNonHttpProtocols: false },
  });
  for (const code of IGNORED_OSC) terminal.parser.registerOscHandler(code, () => true);
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  if (onData) {
    terminal.onData((text) => onData(new TextEncoder().encode(text)));
    terminal.onBinary((text) => onData(Uint8Array.from(text, (character) => character.charCodeAt(0))));
  }
  if (onResize) terminal.onResize(onResize);
  terminal.open(parent);
  terminal.textarea.setAttribute("aria-label", label);
  if (readOnly) terminal.textarea.setAttribute("aria-readonly", "true");
  const resize = () => {
    if (parent.clientWidth > 0) fit.fit();
  };
  const observer = new ResizeObserver(resize);
  observer.observe(parent);
  resize();
  let disposed = false;
  return {
    terminal,
    dispose() {
      if (disposed) return;
      disposed = true;
      observer.disconnect();
      terminal.dispose();
    },
  };
}

/** Keys of a terminal that only shows: those that scroll; Tab and all others are the page's. */
export function scrollKeys(terminal) {
  const moves = {
    ArrowUp: () => terminal.scrollLines(-1),
    ArrowDown: () => terminal.scrollLines(1),
    PageUp: () => terminal.scrollPages(-1),
    PageDown: () => terminal.scrollPages(1),
    Home: () => terminal.scrollToTop(),
    End: () => terminal.scrollToBottom(),
  };
  terminal.attachCustomKeyEventHandler((event) => {
    const move = !event.ctrlKey && !event.altKey && !event.metaKey && moves[event.key];
    if (move) {
      event.preventDefault();
      if (event.type === "keydown") move();
    }
    return false;
  });
}
