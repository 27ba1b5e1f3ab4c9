// What a node of this pack said on itself in its last run (nodes/host/running.py) stays until the node runs again. Older
// pages keep texts even then, though the new run may have nothing to say; newer ones take them all away as a run ends.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

import { nodesAround } from "./preview.js";

const NOTE = "$$node-text-preview"; // the page's widget for texts on a node
const TEXT = "progress_text"; // and its message that fills it
const CATEGORY = "VideoComposer";
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

/** Node -> the last message about it. */
const said = new Map();

function ours(id) {
  const node = nodesAround(app.rootGraph ?? app.graph, id).at(-1);
  return node?.constructor.nodeData?.category?.startsWith(CATEGORY) ? node : undefined;
}

function note(node) {
  return node.widgets?.find((widget) => widget.name === NOTE);
}

api.addEventListener("executing", ({ detail }) => {
  const node = ours(detail);
  if (!node) return;
  said.delete(node);
  if (note(node)) note(node).value = "";
});

api.addEventListener(TEXT, ({ detail }) => {
  const node = ours(detail.nodeId);
  if (node) said.set(node, { nodeId: detail.nodeId, text: detail.text });
});

function sayAgain() {
  for (const [node, detail] of [...said]) {
    if (ours(detail.nodeId) !== node) said.delete(node); // gone, with its workflow perhaps
    else if (!note(node)) api.dispatchEvent(new CustomEvent(TEXT, { detail }));
  }
}

for (const end of ENDS) api.addEventListener(end, () => setTimeout(sayAgain, 200)); // after the page's own listeners
