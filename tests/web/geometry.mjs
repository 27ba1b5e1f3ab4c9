// Calls functions of web/geometry.js: node geometry.mjs MODULE, with [[name, ...arguments], ...] as JSON on stdin.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const geometry = await import(pathToFileURL(process.argv[2]));
const calls = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(calls.map(([name, ...values]) => geometry[name](...values))));
