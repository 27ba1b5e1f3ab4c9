// The note of a node of this pack from its last run (nodes/host/running.py) stays until the node runs again. Older pages
// keep it even then, although the new run may have no note; newer pages remove all notes when a run ends. On the canvas a
// note gets the height that it needs: the page's own widget shows only two lines.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

import { nodesAround } from "./preview.js";

const NOTE = "$$node-text-preview"; // the page's widget for texts on a node
const TEXT = "progress_text"; // the page's message that fills this widget
const CATEGORY = "VideoComposer";
const [CHARACTER, LINE, ACROSS, DOWN, TALLEST] = [6.5, 16, 56, 36, 200]; // pixels, measured on the page's texts
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

/** Node -> its last message. */
const messages = new Map();

function ours(id) {
  const node = nodesAround(app.rootGraph ?? app.graph, id).at(-1);
  return node?.constructor.nodeData?.category?.startsWith(CATEGORY) ? node : undefined;
}

function note(node) {
  return node.widgets?.find((widget) => widget.name === NOTE);
}

function height(text, width) {
  const most = Math.max(1, Math.floor((width - ACROSS) / CHARACTER));
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / most)), 0);
  return Math.min(TALLEST, lines * LINE) + DOWN;
}

function makeRoom(node) {
  const widget = note(node);
  if (!widget || globalThis.LiteGraph?.vueNodesMode) return; // HTML nodes are as tall as their contents
  widget.options.getMinHeight = () => height(String(widget.value ?? ""), node.size[0]);
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
}

api.addEventListener("executing", ({ detail }) => {
  const node = ours(detail);
  if (!node) return;
  messages.delete(node);
  if (note(node)) note(node).value = "";
});

api.addEventListener(TEXT, ({ detail }) => {
  const node = ours(detail.nodeId);
  if (!node) return;
  messages.set(node, { nodeId: detail.nodeId, text: detail.text });
  setTimeout(() => makeRoom(node)); // after the page's own listener
});

function showAgain() {
  for (const [node, detail] of [...messages]) {
    if (ours(detail.nodeId) !== node) messages.delete(node); // the node was removed, perhaps with its workflow
    else if (!note(node)) api.dispatchEvent(new CustomEvent(TEXT, { detail }));
  }
}

for (const end of ENDS) api.addEventListener(end, () => setTimeout(showAgain, 200)); // after the page's own listeners
