// What objects are called for users.

const condition = (object, type) => object.status.conditions.find((found) => found.type === type);

const VMM = {
  starting: ["Starting", "busy"],
  running: ["Running", "good"],
  paused: ["Paused", "warn"],
  stopping: ["Stopping", "busy"],
  stopped: ["Stopped", "idle"],
  failed: ["Failed", "bad"],
};

/** Reasons of conditions that are not True, and yet no faults. */
const CALM = { Paused: "warn", Stopped: "idle", Stopping: "busy", Waiting: "busy", Converging: "busy", Terminating: "busy", Disabled: "idle", UserdataRunning: "busy" };

/** The colour of a condition. */
export function conditionKind({ status, reason }) {
  if (status === "True") return "good";
  return CALM[reason] ?? (status === "False" ? "bad" : "idle");
}

/** The condition `Ready` of an object that is not ready. */
function unready(object) {
  const ready = condition(object, "Ready");
  return ready && ready.status !== "True" ? { text: ready.reason, kind: conditionKind(ready) } : { text: "Pending", kind: "busy" };
}

/** The state of a VM: a word and its colour. */
export function vmState(vm) {
  if (vm.metadata.deleting) return { text: "Deleting", kind: "busy" };
  const { state } = vm.status.vmm;
  const settled = ["paused", "stopped", "failed", "starting", "stopping"].includes(state);
  if (!vm.status.ready && !settled) return unready(vm);
  const [text, kind] = VMM[state] ?? ["Ready", "good"];
  return { text, kind };
}

/** The state of a group. */
export function groupState(group) {
  if (group.metadata.deleting) return { text: "Deleting", kind: "busy" };
  if (group.status.ready) return { text: "Ready", kind: "good" };
  return unready(group);
}

/** The message of the condition `Ready`, unless all is well. */
export function message(object) {
  if (object.status.ready) return (object.status.warnings ?? []).join("; ");
  return condition(object, "Ready")?.message ?? "";
}

/** The agent of a VM: a word and its colour; `null`: it has none. */
export function agentState(vm) {
  const found = condition(vm, "Agent");
  if (!found || found.reason === "Disabled") return null;
  const kind = { True: "good", False: "warn", Unknown: "idle" }[found.status] ?? "idle";
  return { text: found.reason, kind };
}

/** All tags of a VM as texts. */
export function tags(vm) {
  const overrides = vm.on_demand ?? {};
  const pairs = Object.entries(overrides.tags ?? {}).map(([key, value]) => `${key}=${value}`);
  return [...pairs, ...(overrides.plain_tags ?? [])].map(String);
}

/** Whether the guest has a VMM that the daemon runs. */
export function hasVmm(vm) {
  return vm.status.vmm.hypervisor !== "none" && vm.status.vmm.state !== "none";
}

export const isPaused = (vm) => vm.status.vmm.state === "paused" || String(vm.power).toLowerCase() === "paused";
export const isRunning = (vm) => vm.status.vmm.state === "running" || vm.status.vmm.state === "starting";

/** `2 GiB`. */
export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (count >= 1024 && at < units.length - 1) {
    count /= 1024;
    at += 1;
  }
  return `${Number(count.toFixed(1))} ${units[at]}`;
}
