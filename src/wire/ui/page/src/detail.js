// The views of one VM and of one group.

import { request } from "./api.js";
import { showConsole } from "./console.js";
import { confirm } from "./dialog.js";
import { h, notify, pill, setText, table, time } from "./dom.js";
import { chips, conditionTable, eventTable, groupLink, updateEvents, vmLink } from "./lists.js";
import { showShell } from "./shell.js";
import { agentState, bytes, groupState, hasVmm, isPaused, isRunning, message, tags, vmState } from "./state.js";
import { byName, events, store } from "./store.js";

const EVENTS = 50;
/** The VMs that the view of a group shows; the list has all. */
const FIRST_VMS = 50;

/** The parts that both views have. */
function frame(kind, name, actions) {
  const state = h("span");
  const text = h("p", { className: "message" });
  const facts = h("dl", { className: "facts" });
  const conditions = conditionTable();
  const history = eventTable(`Events of ${kind}/${name}`);
  const gone = h("p", { className: "empty", hidden: true });
  const body = h("div", {});
  const heading = h("h1", { tabIndex: -1 }, name);
  const element = h("div", {}, h("div", { className: "title" }, heading, state, actions), gone, body);
  const overview = [
    text,
    facts,
    h("h2", {}, "Conditions"),
    conditions.element,
    h("h2", {}, "Events"),
    history.element,
    h("p", {}, h("a", { href: "#/events" }, "All events")),
  ];
  let signed = null;
  return {
    element,
    body,
    overview,
    /** Shows an object; `undefined`: it does not exist. */
    show(object, word, factsOf) {
      gone.hidden = object !== undefined || store.link === "loading";
      body.hidden = object === undefined;
      if (!object) {
        setText(gone, `${kind}/${name} does not exist, or does not exist any more.`);
        state.replaceChildren();
        signed = null;
        return;
      }
      const pairs = factsOf(object);
      const sign = JSON.stringify([word, object.metadata, object.status, object.on_demand]);
      if (sign !== signed) {
        signed = sign;
        state.replaceChildren(pill(word));
        setText(text, message(object));
        facts.replaceChildren(...pairs.filter(([, value]) => value).map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
        conditions.rows.update(object.status.conditions, (condition) => condition.type);
      }
      const own = `${kind}/${name}`;
      updateEvents(history.rows, events((event) => event.object === own).slice(0, EVENTS));
    },
  };
}

const mono = (text) => (text ? h("span", { className: "mono" }, text) : "");

function vmFacts(vm) {
  const { network, vmm } = vm.status;
  const exit = vmm.last_exit;
  const size = [vm.spec.vcpu && `${vm.spec.vcpu} CPU`, vm.spec.ram_bytes && bytes(vm.spec.ram_bytes)].filter(Boolean).join(", ");
  return [
    ["Group", vm.metadata.group && groupLink(vm.metadata.group)],
    ["Tags", tags(vm).length > 0 && chips(tags(vm))],
    ["Address", network && mono(`${network.ip}/${network.prefix_len}`)],
    ["Gateway", network && mono(network.gateway)],
    ["Network", network && [network.mode, network.tap].filter((part) => typeof part === "string").join(", ")],
    ["Hypervisor", [vmm.hypervisor, vmm.pid && `pid ${vmm.pid}`].filter(Boolean).join(", ")],
    ["Size", size],
    ["Agent", agentState(vm)?.text],
    ["Disk", vm.status.disk && mono(vm.status.disk)],
    ["Restarts", vmm.restarts > 0 && String(vmm.restarts)],
    ["Last exit", exit && h("span", {}, exit.reason, ", ", time(exit.at))],
    ["Made", h("span", {}, vm.on_demand ? "on demand, " : "by count of its group, ", time(vm.metadata.created_at))],
    ["Warnings", (vm.status.warnings ?? []).join("; ")],
  ];
}

/** What a button does, and what is asked before. */
const ACTIONS = {
  pause: {
    title: (name) => `Pause ${name}?`,
    text: () => "The guest does not run until it is resumed. Its connections may time out.",
    label: (name) => `Pause ${name}`,
    send: (name) => request("POST", `/v1/vms/${encodeURIComponent(name)}/pause`),
    done: "pause requested",
  },
  resume: {
    title: (name) => `Resume ${name}?`,
    text: () => "The guest goes on where it was paused.",
    label: (name) => `Resume ${name}`,
    send: (name) => request("POST", `/v1/vms/${encodeURIComponent(name)}/resume`),
    done: "resume requested",
  },
  delete: {
    title: (name) => `Delete ${name}?`,
    text: (vm) =>
      vm.on_demand
        ? "The VM is removed. Its disk is deleted, too, unless it is persistent."
        : "The VM belongs to the count of its group: it is recreated with the same name and address, and a new disk unless its disk is persistent. To have fewer VMs, scale the group.",
    label: (name) => `Delete ${name}`,
    send: (name) => request("DELETE", `/v1/objects/vm/${encodeURIComponent(name)}`),
    done: "deletion requested",
    dangerous: true,
  },
};

async function act(verb, name, button) {
  const vm = store.vms.get(name);
  if (!vm || button.getAttribute("aria-disabled") === "true") return;
  const action = ACTIONS[verb];
  const question = { title: action.title(name), text: action.text(vm), action: action.label(name), dangerous: action.dangerous };
  if (!(await confirm(question))) return;
  try {
    await action.send(name);
    notify(`vm/${name}: ${action.done}`);
  } catch (error) {
    if (error.name !== "AbortError") notify(`vm/${name}: ${error.message}`, "bad");
  }
}

export function vmView(name, tab, signal) {
  const buttons = {};
  for (const [verb, label] of [["pause", "Pause"], ["resume", "Resume"], ["delete", "Delete"]]) {
    const className = verb === "delete" ? "danger" : "";
    buttons[verb] = h("button", { type: "button", className, on: { click: ({ currentTarget }) => act(verb, name, currentTarget) } }, label);
  }
  const actions = h("div", { className: "actions", role: "group", "aria-label": "Actions" }, Object.values(buttons));
  const view = frame("vm", name, actions);
  const path = `#/vms/${encodeURIComponent(name)}`;
  const tabs = [["overview", "Overview", path], ["console", "Console", `${path}/console`], ["shell", "Shell", `${path}/shell`]];
  const links = tabs.map(([id, label, href]) => h("a", { href, "aria-current": id === tab && "page" }, label));
  const panel = h("section", { "aria-label": tabs.find(([id]) => id === tab)[1] });
  view.body.append(h("nav", { className: "tabs", "aria-label": `Views of ${name}` }, links), panel);
  let started = false;

  function begin() {
    if (started) return;
    started = true;
    if (tab === "console") showConsole(panel, name, signal);
    else if (tab === "shell") showShell(panel, name, signal);
    else panel.append(...view.overview);
  }

  /** Disables a button without taking the focus that it may have. */
  const enable = (button, is) => {
    button.setAttribute("aria-disabled", String(!is));
    button.hidden = !is && button !== document.activeElement;
  };

  function update() {
    const vm = store.vms.get(name);
    if (vm) begin();
    view.show(vm, vm && vmState(vm), vmFacts);
    actions.hidden = !vm;
    if (!vm) return;
    const deleting = vm.metadata.deleting;
    enable(buttons.pause, !deleting && hasVmm(vm) && isRunning(vm) && !isPaused(vm));
    enable(buttons.resume, !deleting && hasVmm(vm) && isPaused(vm));
    enable(buttons.delete, !deleting);
  }
  return { title: name, element: view.element, update };
}

function groupFacts(group) {
  const { spec, status, origin } = group;
  const template = spec.template ?? {};
  const path = typeof origin?.path === "string" ? origin.path : null;
  const name = group.metadata.name;
  return [
    ["VMs", h("a", { href: `#/vms?group=${encodeURIComponent(name)}` }, `${status.ready_count} of ${status.desired} ready`)],
    ["On demand", status.on_demand > 0 && String(status.on_demand)],
    ["Paused", status.paused > 0 && String(status.paused)],
    ["Stopped", status.stopped > 0 && String(status.stopped)],
    ["Range", mono(status.range)],
    ["Hypervisor", template.hypervisor],
    ["Size", [template.vcpu && `${template.vcpu} CPU`, template.ram_bytes && bytes(template.ram_bytes)].filter(Boolean).join(", ")],
    ["Defined in", path ? mono(path) : "slicectl apply"],
    ["Created", time(group.metadata.created_at)],
    ["Warnings", (status.warnings ?? []).join("; ")],
  ];
}

export function groupView(name) {
  const view = frame("hostgroup", name, null);
  const draw = (vm) => [vmLink(vm.metadata.name), pill(vmState(vm)), mono(vm.status.network?.ip), h("span", { className: "message" }, message(vm))];
  const sign = (vm) => JSON.stringify([vm.metadata.uid, vmState(vm), vm.status.network?.ip, message(vm)]);
  const { element, rows } = table(`VMs of ${name}`, ["Name", "State", "Address", "Message"], draw, sign);
  const more = h("p");
  const [text, facts, ...rest] = view.overview;
  view.body.append(text, facts, h("h2", {}, "VMs"), element, more, ...rest);
  function update() {
    const group = store.groups.get(name);
    view.show(group, group && groupState(group), groupFacts);
    const own = byName([...store.vms.values()].filter((vm) => vm.metadata.group === name));
    rows.update(own.slice(0, FIRST_VMS), (vm) => vm.metadata.name);
    element.hidden = own.length === 0;
    setText(more, own.length === 0 ? "None." : "");
    if (own.length > FIRST_VMS) more.replaceChildren(h("a", { href: `#/vms?group=${encodeURIComponent(name)}` }, `All ${own.length} VMs`));
  }
  return { title: name, element: view.element, update };
}
