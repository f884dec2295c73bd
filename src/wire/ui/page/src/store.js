// The objects and events of the daemon, as one watch keeps them: no request is repeated while the page is idle.

import { lines, pause, request, session } from "./api.js";

const EVENTS = 1000;
const FIRST_DELAY = 500;
const LAST_DELAY = 15_000;

/** What is known. `link`: loading, live or lost. */
export const store = { groups: new Map(), vms: new Map(), events: [], link: "loading" };

const listeners = new Set();
let scheduled = false;

/** Calls `listener` at most once per frame after changes; the result removes it. */
export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function changed() {
  if (scheduled) return;
  scheduled = true;
  // A page in the background draws nothing until it is seen.
  requestAnimationFrame(() => {
    scheduled = false;
    for (const listener of [...listeners]) listener();
  });
}

function setLink(link) {
  store.link = link;
  changed();
}

/** Forgets everything. */
export function clear() {
  Object.assign(store, { groups: new Map(), vms: new Map(), events: [], link: "loading" });
  changed();
}

function maps(into, object) {
  if (object.kind === "HostGroup") return into.groups;
  if (object.kind === "Vm") return into.vms;
  return null;
}

/** Consecutive equal events are one with a count. */
function addEvent(events, event) {
  if (event.count > 1) {
    const same = (other) =>
      other.object === event.object && other.reason === event.reason && other.message === event.message && other.count < event.count;
    const at = events.findLastIndex(same);
    if (at >= 0) events.splice(at, 1);
  }
  events.push(event);
  if (events.length > EVENTS) events.splice(0, events.length - EVENTS);
}

/** Applies a line to `into`; returns the version, or `null` if the watch has to start again. */
function apply(into, line, version) {
  switch (line.type) {
    case "ADDED":
    case "MODIFIED":
      maps(into, line.object)?.set(line.object.metadata.name, line.object);
      break;
    case "DELETED":
      maps(into, line.object)?.delete(line.object.metadata.name);
      break;
    case "EVENT":
      addEvent(into.events, line.event);
      break;
    case "ERROR":
      return null;
  }
  return line.resource_version ?? version;
}

/** Follows one response to its end. Before `SYNCED`, the lines are a new list. */
async function follow(response, since) {
  let version = since;
  let into = since ? store : { groups: new Map(), vms: new Map(), events: [] };
  if (since) setLink("live");
  for await (const line of lines(response)) {
    if (session().aborted) return version;
    version = apply(into, line, version);
    if (version === null && line.type === "ERROR") return null;
    if (line.type === "SYNCED") {
      Object.assign(store, into);
      into = store;
      setLink("live");
    }
    if (into === store) changed();
  }
  // A list that is not complete cannot be continued.
  return into === store ? version : null;
}

/** Watches until the session ends. `refused` is called if the token is not valid any more. */
export async function watch(refused) {
  const signal = session();
  let since = null;
  let delay = FIRST_DELAY;
  while (!signal.aborted) {
    const query = new URLSearchParams({ kinds: "hostgroup,vm", events: "true" });
    if (since) query.set("since", since);
    try {
      const response = await request("GET", `/v1/watch?${query}`, signal);
      const began = Date.now();
      since = await follow(response, since);
      if (Date.now() - began > 5000) delay = FIRST_DELAY;
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401) return refused(error);
      if (error.status === 410) {
        since = null;
        continue;
      }
      if (error.status === 400 || error.status === 422) since = null;
    }
    if (signal.aborted) return;
    setLink("lost");
    await pause(delay * (0.75 + Math.random() / 2));
    delay = Math.min(2 * delay, LAST_DELAY);
  }
}

/** Waits until the watch is live again. */
export function whenLive(signal) {
  return new Promise((resolve) => {
    const check = () => {
      if (store.link !== "live" && !signal.aborted) return;
      remove();
      resolve();
    };
    const remove = subscribe(check);
    signal.addEventListener("abort", check);
    check();
  });
}

const collator = new Intl.Collator("en", { numeric: true });

/** By name, numbers by value. */
export function byName(objects) {
  return [...objects].sort((a, b) => collator.compare(a.metadata.name, b.metadata.name));
}

/** The newest first; `object`: `vm/x`, or a prefix of several. */
export function events(matches = () => true) {
  return store.events.filter(matches).reverse();
}
