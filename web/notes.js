// What a node of this pack said on itself in its last run (nodes/host/running.py) goes when it runs again: a run that
// has nothing to say leaves no old note.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

import { nodesAround } from "./preview.js";

const NOTE = "$$node-text-preview"; // the page's widget for texts on a node
const CATEGORY = "VideoComposer";

api.addEventListener("executing", ({ detail }) => {
  const node = nodesAround(app.rootGraph ?? app.graph, detail).at(-1);
  if (!node?.constructor.nodeData?.category?.startsWith(CATEGORY)) return;
  const note = node.widgets?.find((widget) => widget.name === NOTE);
  if (note) note.value = "";
});
