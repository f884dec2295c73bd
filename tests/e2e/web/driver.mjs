// A browser for tests: reads a line of JSON with code, runs it, and answers with a line of JSON: `{"value"}` or `{"error"}`.
//
// node driver.mjs MODULES PROFILE    the directory of node_modules, and a directory for a new profile

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";

const [modules, profile] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const { chromium } = require("playwright-core");
const axeSource = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const context = await chromium.launchPersistentContext(profile, {
  executablePath: "/usr/bin/chromium",
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  viewport: { width: 1280, height: 800 },
  colorScheme: "light",
});
context.setDefaultTimeout(60_000);

/** What has happened since the start: requests, violations of the policy, and messages of the console. */
const seen = { requests: [], violations: [], messages: [] };
await context.exposeBinding("reportViolation", (_, text) => seen.violations.push(text));
await context.addInitScript(() => {
  addEventListener("securitypolicyviolation", (event) => {
    window.reportViolation(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber} ${event.sample}`);
  });
});
const page = context.pages()[0] ?? (await context.newPage());
page.on("request", (request) => seen.requests.push(`${request.method()} ${request.url()}`));
page.on("websocket", (socket) => seen.requests.push(`WS ${socket.url()}`));
page.on("console", (message) => seen.messages.push(`${message.type()}: ${message.text()}`));
page.on("pageerror", (error) => seen.messages.push(`pageerror: ${error.stack}`));

// For work on the page: its files from a directory, such as src/wire/ui/dist, in place of those in the program.
const dist = process.env.SLICE_WEB_DIST;
if (dist) {
  await page.route(/\/ui\/app\.(js|css)$/, async (route) => {
    const name = new URL(route.request().url()).pathname.split("/").at(-1);
    await route.fulfill({ path: `${dist}/${name}`, contentType: name.endsWith("js") ? "text/javascript" : "text/css" });
  });
}

const NARROW = 360;

/** Serious and critical faults that axe finds, in light and in dark, and what does not fit into 360 px. */
async function faults() {
  const found = [];
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await page.evaluate(axeSource);
    const { violations } = await page.evaluate(() => window.axe.run({ resultTypes: ["violations"] }));
    for (const { id, impact, nodes } of violations) {
      if (["serious", "critical"].includes(impact)) {
        found.push(`${colorScheme}: ${impact} ${id}: ${nodes.map((node) => `${node.html.slice(0, 200)} ${node.any[0]?.message ?? ""}`).join(" | ")}`);
      }
    }
  }
  await page.emulateMedia({ colorScheme: "light", reducedMotion: null });
  const size = page.viewportSize();
  await page.setViewportSize({ width: NARROW, height: 740 });
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  if (width > NARROW) found.push(`${width} px wide at ${NARROW} px`);
  await page.setViewportSize(size);
  return found;
}

/** What a user reads. */
const text = () => page.locator("body").innerText();

/** Waits until a text is there. */
const shows = (expected) => page.getByText(expected).first().waitFor();

/** Waits until the terminal has a text. */
const prints = (expected) => page.waitForFunction((expected) => document.querySelector(".xterm-rows")?.textContent.includes(expected), expected);

/** Presses Tab until the element that has the focus is called so. */
async function tabTo(name) {
  const called = () => page.evaluate(() => {
    const element = document.activeElement;
    return element.getAttribute("aria-label") ?? (element.labels?.[0] ?? element).textContent.trim();
  });
  const passed = [];
  for (let at = 0; at < 60; at += 1) {
    await page.keyboard.press("Tab");
    const found = await called();
    if (found === name) return;
    passed.push(found);
  }
  throw new Error(`Tab does not reach ${name}: ${passed.join(", ")}`);
}

/** Takes a screenshot if SLICE_WEB_SHOTS names a directory. */
async function shot(name) {
  const dir = process.env.SLICE_WEB_SHOTS;
  if (dir) await page.screenshot({ path: `${dir}/${name}.png` });
}

const AsyncFunction = (async () => {}).constructor;
const names = ["page", "context", "seen", "faults", "text", "shows", "prints", "tabTo", "shot", "data"];
process.stdout.write("{}\n");
for await (const line of createInterface({ input: process.stdin })) {
  const { code, data } = JSON.parse(line);
  let answer;
  try {
    const value = await new AsyncFunction(...names, code)(page, context, seen, faults, text, shows, prints, tabTo, shot, data);
    answer = { value: value ?? null };
  } catch (error) {
    answer = { error: `${error.stack}\nURL ${page.url()}\n${await text().catch(() => "")}\n${seen.messages.slice(-10).join("\n")}` };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await context.close();
