// The views with lists: groups, VMs, events. Each returns `{ title, element, update }`.

import { h, pill, setText, table, time } from "./dom.js";
import { agentState, bytes, conditionKind, groupState, message, tags, vmState } from "./state.js";
import { byName, events, store } from "./store.js";

/** Rows that are drawn at once. More are a click away: no list freezes the page. */
const FIRST = 2000;

const link = (path, text) => h("a", { href: `#/${path}` }, text);
const vmLink = (name) => link(`vms/${encodeURIComponent(name)}`, name);
const groupLink = (name) => link(`groups/${encodeURIComponent(name)}`, name);

/** A link to what an event or a group names, if there is a view of it. */
export function objectLink(text) {
  const [kind, name] = text.split("/", 2);
  if (kind === "vm" && store.vms.has(name)) return link(`vms/${encodeURIComponent(name)}`, text);
  if (kind === "hostgroup" && store.groups.has(name)) return link(`groups/${encodeURIComponent(name)}`, text);
  return text;
}

function chips(texts) {
  return texts.length === 0 ? "" : h("ul", { className: "chips", role: "list" }, texts.map((text) => h("li", {}, text)));
}

/** A list with a text above it that says how many there are, and one instead of it if there are none. */
function list(title, controls, caption, labels, draw, sign, empty) {
  const { element: grid, rows } = table(caption, labels, draw, sign);
  const count = h("p", { className: "hint", role: "status" });
  const none = h("p", { className: "empty", hidden: true });
  const more = h("button", { type: "button", hidden: true }, "Show all");
  const element = h("div", {}, h("h1", { tabIndex: -1 }, title), h("div", { className: "bar" }, controls, count), grid, none, more);
  let limit = FIRST;
  let last = [];
  const show = (items, total, key) => {
    last = [items, total, key];
    setText(count, items.length === total ? `${total} in all` : `${items.length} of ${total}`);
    rows.update(items.slice(0, limit), key);
    more.hidden = items.length <= limit;
    grid.hidden = items.length === 0;
    none.hidden = items.length > 0;
    setText(none, store.link === "loading" ? "Loading …" : total === 0 ? empty : "Nothing matches.");
  };
  more.addEventListener("click", () => {
    limit = Infinity;
    show(...last);
  });
  return { element, show };
}

function search(label, changed) {
  const input = h("input", { type: "search", id: "search", placeholder: "Filter", autocomplete: "off", spellcheck: "false" });
  input.addEventListener("input", changed);
  return { input, element: h("label", { htmlFor: "search" }, h("span", { className: "hidden" }, label), input) };
}

const contains = (terms, texts) => {
  const text = texts.join(" ").toLowerCase();
  return terms.every((term) => text.includes(term));
};
const terms = (input) => input.value.toLowerCase().split(/\s+/).filter(Boolean);

const fingerprint = (...parts) => JSON.stringify(parts);

function vmCells(vm) {
  const agent = agentState(vm);
  return [
    h("span", { className: "names" }, vmLink(vm.metadata.name), chips(tags(vm))),
    vm.metadata.group ? groupLink(vm.metadata.group) : "",
    h("span", { className: "states" }, pill(vmState(vm)), agent && agent.kind !== "good" ? h("span", { className: "hint" }, `agent: ${agent.text}`) : null),
    h("span", { className: "mono" }, vm.status.network?.ip ?? ""),
    h("span", { className: "message" }, message(vm)),
    time(vm.metadata.created_at),
  ];
}

function vmSign(vm) {
  return fingerprint(vm.metadata.uid, vm.metadata.group, tags(vm), vmState(vm), agentState(vm), vm.status.network?.ip, message(vm));
}

export function vmsView(query) {
  let group = query.get("group") ?? "";
  const select = h("select", { id: "group" });
  const filter = search("Filter VMs by name, tag, state, address or message", () => update());
  const problems = h("input", { type: "checkbox", id: "problems" });
  const controls = [
    filter.element,
    h("label", { htmlFor: "group" }, h("span", { className: "hidden" }, "Group"), select),
    h("label", { htmlFor: "problems" }, problems, " Not ready"),
  ];
  const labels = ["Name", "Group", "State", "Address", "Message", "Created"];
  const view = list("VMs", controls, "VMs", labels, vmCells, vmSign, "There are no VMs. Apply a manifest with slicectl apply.");
  problems.addEventListener("change", () => update());
  select.addEventListener("change", () => {
    group = select.value;
    update();
  });

  function update() {
    const names = byName(store.groups.values()).map((found) => found.metadata.name);
    if (group && !names.includes(group)) names.push(group);
    const options = fingerprint(names);
    if (select.dataset.options !== options) {
      select.dataset.options = options;
      select.replaceChildren(h("option", { value: "" }, "All groups"), ...names.map((name) => h("option", { value: name }, name)));
      select.value = group;
    }
    const required = terms(filter.input);
    const matches = (vm) =>
      (!group || vm.metadata.group === group) &&
      (!problems.checked || !vm.status.ready) &&
      contains(required, [vm.metadata.name, ...tags(vm), vmState(vm).text, vm.status.network?.ip ?? "", message(vm)]);
    const shown = byName([...store.vms.values()].filter(matches));
    view.show(shown, store.vms.size, (vm) => vm.metadata.name);
  }
  return { title: "VMs", element: view.element, update };
}

function groupCells(group) {
  const { status, spec } = group;
  const template = spec.template ?? {};
  const extra = [status.paused && `${status.paused} paused`, status.stopped && `${status.stopped} stopped`, status.on_demand && `${status.on_demand} on demand`];
  return [
    groupLink(group.metadata.name),
    h("span", { className: "states" }, pill(groupState(group))),
    h("span", {}, link(`vms?group=${encodeURIComponent(group.metadata.name)}`, `${status.ready_count} of ${status.desired} ready`), extra.some(Boolean) ? h("span", { className: "hint" }, ` ${extra.filter(Boolean).join(", ")}`) : null),
    h("span", { className: "nowrap" }, [template.hypervisor, template.vcpu && `${template.vcpu} CPU`, template.ram_bytes && bytes(template.ram_bytes)].filter(Boolean).join(", ")),
    h("span", { className: "mono" }, status.range ?? ""),
    h("span", { className: "message" }, message(group)),
  ];
}

export function groupsView() {
  const labels = ["Name", "State", "VMs", "Size", "Range", "Message"];
  const sign = (group) => fingerprint(group.metadata, group.status, group.spec.template);
  const filter = search("Filter groups by name or message", () => update());
  const view = list("Host groups", filter.element, "Host groups", labels, groupCells, sign, "There are no host groups. Apply a manifest with slicectl apply.");
  function update() {
    const required = terms(filter.input);
    const shown = byName([...store.groups.values()].filter((group) => contains(required, [group.metadata.name, message(group), groupState(group).text])));
    view.show(shown, store.groups.size, (group) => group.metadata.name);
  }
  return { title: "Host groups", element: view.element, update };
}

function eventCells(event) {
  return [
    time(event.time),
    h("span", { className: "states" }, pill({ text: event.reason, kind: event.type === "Warning" ? "warn" : "idle" })),
    objectLink(event.object),
    h("span", { className: "message" }, event.message, event.count > 1 ? h("span", { className: "hint" }, ` × ${event.count}`) : null),
  ];
}

const eventKey = (event) => fingerprint(event.time, event.object, event.reason, event.message);

/** A table of the events of one object. */
export function eventTable(caption) {
  const draw = (event) => eventCells(event).filter((_, at) => at !== 2);
  return table(caption, ["Time", "Reason", "Message"], draw, (event) => fingerprint(event));
}

export function updateEvents(rows, shown) {
  rows.update(shown, eventKey);
}

export function eventsView() {
  const warnings = h("input", { type: "checkbox", id: "warnings" });
  const filter = search("Filter events by object, reason or message", () => update());
  warnings.addEventListener("change", () => update());
  const controls = [filter.element, h("label", { htmlFor: "warnings" }, warnings, " Warnings")];
  const labels = ["Time", "Reason", "Object", "Message"];
  const view = list("Events", controls, "Events, the newest first", labels, eventCells, (event) => fingerprint(event, typeof objectLink(event.object)), "There are no events.");
  function update() {
    const required = terms(filter.input);
    const shown = events((event) => (!warnings.checked || event.type === "Warning") && contains(required, [event.object, event.reason, event.message]));
    view.show(shown, store.events.length, eventKey);
  }
  return { title: "Events", element: view.element, update };
}

/** Conditions of an object. */
export function conditionTable() {
  const draw = (condition) => [
    condition.type,
    h("span", { className: "states" }, pill({ text: condition.reason, kind: conditionKind(condition) }), h("span", { className: "hidden" }, `status ${condition.status}`)),
    h("span", { className: "message" }, condition.message),
    time(condition.since),
  ];
  return table("Conditions", ["Condition", "Reason", "Message", "Since"], draw, (condition) => JSON.stringify(condition));
}

export { chips, groupLink, vmLink };
