// Builds the files of the page, `OUT`, of these sources: `node build.mjs [OUT]`. The same sources give the same bytes.

import { cp, mkdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = path.dirname(fileURLToPath(import.meta.url));
const out = path.resolve(process.argv[2] ?? path.join(here, "../dist"));
await mkdir(out, { recursive: true });
const common = { absWorkingDir: here, bundle: true, minify: true, charset: "utf8", legalComments: "none", logLevel: "warning" };
const script = await build({ ...common, entryPoints: ["src/main.js"], outfile: path.join(out, "app.js"), format: "esm", target: "es2022", metafile: true });
await build({ ...common, entryPoints: ["src/app.css"], outfile: path.join(out, "app.css"), target: ["chrome120", "firefox120", "safari17"] });
for (const file of ["index.html", "icon.svg"]) await cp(path.join(here, file), path.join(out, file));

// The packages in the bundle, with their licences.
const packages = new Set();
for (const input of Object.keys(script.metafile.inputs)) {
  const name = input.match(/node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1];
  if (name) packages.add(name);
}
const texts = [];
for (const name of [...packages].sort()) {
  const dir = path.join(here, "node_modules", name);
  const { version, license } = JSON.parse(await readFile(path.join(dir, "package.json"), "utf8"));
  if (license !== "MIT") throw new Error(`${name}: licence ${license}, expected MIT`);
  texts.push(`${name} ${version} (${license})\n\n${(await readFile(path.join(dir, "LICENSE"), "utf8")).trim()}\n`);
}
// xterm.js contains the scroll bar of VS Code; its licence has the same text.
texts.push("Visual Studio Code, in @xterm/xterm (MIT)\n\nCopyright (c) 2015 - present Microsoft Corporation\n\nThe text is that of @xterm/xterm.\n");
if (packages.size < 2) throw new Error("no packages found");
await writeFile(path.join(out, "licenses.txt"), texts.join(`\n${"-".repeat(80)}\n\n`));
