// Questions before something is done.

import { h } from "./dom.js";

/** Asks; resolves to whether the user agrees. Escape and the first button, which has the focus, cancel. */
export function confirm({ title, text, action, dangerous }) {
  const opener = document.activeElement;
  const cancel = h("button", { type: "button" }, "Cancel");
  const agree = h("button", { type: "button", className: dangerous ? "danger" : "primary" }, action);
  const dialog = h(
    "dialog",
    { "aria-labelledby": "dialog-title", "aria-describedby": "dialog-text" },
    h("h2", { id: "dialog-title" }, title),
    h("p", { id: "dialog-text" }, text),
    h("div", { className: "buttons" }, cancel, agree),
  );
  return new Promise((resolve) => {
    let agreed = false;
    cancel.addEventListener("click", () => dialog.close());
    agree.addEventListener("click", () => {
      agreed = true;
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      // The opener may be gone with its view.
      (opener?.isConnected ? opener : document.querySelector("h1"))?.focus();
      resolve(agreed);
    });
    document.body.append(dialog);
    dialog.showModal();
    cancel.focus();
  });
}
