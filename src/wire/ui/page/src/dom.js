// Elements of the page. Text becomes a text node always: what a guest or a user has written is never markup.

const PROPERTIES = new Set(["className", "disabled", "hidden", "tabIndex", "type", "value", "checked", "htmlFor", "id", "open"]);

/** An element. `on` has its listeners; other keys are attributes, or properties of the list above. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (PROPERTIES.has(name)) {
      element[name] = value;
    } else {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Replaces the text of an element if it is another, so that a screen reader and a selection are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** How long rows are drawn at once, in milliseconds; the others follow in the next frames, so that the page answers meanwhile. */
const BUDGET = 30;

/** Keeps rows of a table in the order of `items`, and touches only those that changed. */
export class Rows {
  /** `draw(item)` returns the cells of a row: nodes or texts. `sign(item)`: a text that changes when they do. */
  constructor(body, labels, draw, sign) {
    Object.assign(this, { body, labels, draw, sign, rows: new Map(), next: 0 });
  }

  update(items, key) {
    cancelAnimationFrame(this.next);
    const until = performance.now() + BUDGET;
    const ids = new Set(items.map(key));
    for (const [id, row] of this.rows) {
      if (ids.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    let isComplete = true;
    let next = this.body.firstChild;
    for (const item of items) {
      const id = key(item);
      const sign = this.sign(item);
      let row = this.rows.get(id);
      if (row?.sign !== sign) {
        if (performance.now() > until) {
          isComplete = false;
          if (!row) continue;
        } else {
          row ??= this.add(id);
          this.redraw(row, item, sign);
        }
      }
      if (row.element === next) {
        next = next.nextSibling;
      } else {
        this.body.insertBefore(row.element, next);
      }
    }
    if (!isComplete) this.next = requestAnimationFrame(() => this.update(items, key));
  }

  add(id) {
    const row = { element: h("tr", { role: "row" }), sign: null };
    this.rows.set(id, row);
    return row;
  }

  redraw(row, item, sign) {
    const focused = row.element.contains(document.activeElement);
    row.sign = sign;
    row.element.replaceChildren(...this.draw(item).map((cell, at) => this.cell(cell, at)));
    if (focused) row.element.querySelector("a, button")?.focus();
  }

  cell(content, at) {
    const first = at === 0;
    const attributes = { role: first ? "rowheader" : "cell", "data-label": this.labels[at] };
    if (first) attributes.scope = "row";
    return h(first ? "th" : "td", attributes, content);
  }
}

/** A table with a caption for screen readers. Narrow screens show each row as a block, so the roles are explicit. */
export function table(caption, labels, draw, sign) {
  const body = h("tbody", { role: "rowgroup" });
  const heads = labels.map((label) => h("th", { role: "columnheader", scope: "col" }, label));
  const element = h(
    "table",
    { role: "table" },
    h("caption", { className: "hidden" }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)),
    body,
  );
  return { element, rows: new Rows(body, labels, draw, sign) };
}

const UNITS = [["year", 31536000], ["month", 2592000], ["day", 86400], ["hour", 3600], ["minute", 60]];
const absolute = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

/** `5 minutes ago`. */
function age(date) {
  const seconds = (date - Date.now()) / 1000;
  const unit = UNITS.find(([, size]) => Math.abs(seconds) >= size);
  return unit ? relative.format(Math.round(seconds / unit[1]), unit[0]) : "just now";
}

/** A point in time; its text is the age. */
export function time(text) {
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return h("span", {}, String(text));
  return h("time", { datetime: date.toISOString(), title: absolute.format(date) }, age(date));
}

// Costs no request.
setInterval(() => {
  for (const element of document.querySelectorAll("time")) setText(element, age(new Date(element.dateTime)));
}, 20_000);

const notices = document.getElementById("notices");

/** Reports a result to the user, also by a screen reader. An error stays until it is dismissed. */
export function notify(text, kind = "good") {
  const close = h("button", { type: "button", className: "quiet", "aria-label": "Dismiss" }, "×");
  const notice = h("div", { className: `notice ${kind}` }, h("span", {}, text), close);
  close.addEventListener("click", () => notice.remove());
  notices.append(notice);
  while (notices.children.length > 4) notices.firstChild.remove();
  if (kind === "good") setTimeout(() => notice.remove(), 8000);
}

/** A coloured word: good, busy, warn, bad or idle. The word alone shows the state. */
export function pill({ text, kind }) {
  return h("span", { className: `pill ${kind}` }, text);
}
