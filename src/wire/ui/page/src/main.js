// The page: the session and its views. The address names the view, never the token.

import { begin, end, request, session } from "./api.js";
import { h, notify, setText } from "./dom.js";
import { groupView, vmView } from "./detail.js";
import { eventsView, groupsView, vmsView } from "./lists.js";
import { clear, store, subscribe, watch } from "./store.js";

const main = document.getElementById("main");
const nav = document.getElementById("nav");
const link = document.getElementById("link");
const leave = document.getElementById("leave");
const version = document.getElementById("version");
const asks = document.documentElement.dataset.token !== "none";

const VIEWS = [["groups", "Groups"], ["vms", "VMs"], ["events", "Events"]];
const LINKS = { loading: "Loading", live: "Live", lost: "Reconnecting" };

let isIn = false;
let view = null;
let ended = new AbortController();

/** The view that the address names. */
function route(signal) {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [first, name, tab] = path.split("/").map(decode);
  if (first === "groups") return name ? groupView(name) : groupsView();
  if (first === "events") return eventsView();
  if (first === "vms" && name) return vmView(name, ["console", "shell"].includes(tab) ? tab : "overview", signal);
  return vmsView(new URLSearchParams(query));
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function show(moveFocus) {
  ended.abort();
  ended = new AbortController();
  if (!isIn) return;
  view = route(ended.signal);
  main.replaceChildren(view.element);
  document.title = `${view.title} · slice`;
  const current = location.hash.replace(/^#\/?/, "").split(/[/?]/, 1)[0] || "vms";
  for (const anchor of nav.children) {
    if (anchor.dataset.view === current) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  update();
  if (moveFocus) main.querySelector("h1")?.focus();
}

function update() {
  if (!isIn) return;
  setText(link, LINKS[store.link]);
  link.className = `link ${store.link}`;
  view?.update();
}

function setIn(value) {
  isIn = value;
  nav.hidden = !value;
  link.hidden = !value;
  leave.hidden = !value || !asks;
}

/** Begins a session; `token`: `null` if none is needed. */
async function signIn(token) {
  begin(token);
  const info = await (await request("GET", "/v1/version")).json();
  setText(version, `sliced ${info.version}`);
  setIn(true);
  show(true);
  watch((error) => signOut(`${error.message}. Enter the current token.`));
}

function signOut(why) {
  end();
  setIn(false);
  ended.abort();
  view = null;
  clear();
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  if (asks) askForToken(why);
  else connect();
}

/** The form for the token. Its field has no name and no form owner that could send it: it is read, and emptied. */
function askForToken(why) {
  document.title = "Sign in · slice";
  const field = h("input", { type: "password", id: "token", autocomplete: "off", spellcheck: "false", autocapitalize: "none", required: true, "aria-describedby": "token-hint token-error" });
  const error = h("p", { className: "error", id: "token-error", role: "alert" }, why ?? "");
  const button = h("button", { type: "submit", className: "primary" }, "Sign in");
  const form = h(
    "form",
    { className: "sign-in", "aria-labelledby": "sign-in-title" },
    h("h1", { id: "sign-in-title", tabIndex: -1 }, "Sign in"),
    h("label", { htmlFor: "token" }, "Token of the API"),
    field,
    error,
    button,
    h("p", { className: "hint", id: "token-hint" }, "Read it on the host: ", h("code", {}, "sudo cat /var/lib/slice/api/token"), ". The page keeps it in memory until it is closed or reloaded."),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const token = field.value.trim();
    button.disabled = true;
    try {
      await signIn(token);
    } catch (failure) {
      end();
      button.disabled = false;
      setText(error, failure.status === 401 ? "This token is not valid." : failure.message);
      field.select();
      field.focus();
      return;
    }
    field.value = "";
  });
  main.replaceChildren(form);
  field.focus();
}

/** For a listener without a token. */
async function connect() {
  main.replaceChildren(h("p", { className: "empty" }, "Connecting …"));
  try {
    await signIn(null);
  } catch (error) {
    const again = h("button", { type: "button", on: { click: connect } }, "Try again");
    main.replaceChildren(h("p", { className: "empty", role: "alert" }, error.message), again);
  }
}

for (const [id, label] of VIEWS) nav.append(h("a", { href: `#/${id}`, "data-view": id }, label));
leave.addEventListener("click", () => signOut());
document.querySelector(".skip").addEventListener("click", (event) => {
  // The address is the view's.
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", () => show(true));
addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name === "AbortError" || session().aborted) return;
  notify("The page has a fault: reload it.", "bad");
});
subscribe(update);
if (asks) askForToken();
else connect();
