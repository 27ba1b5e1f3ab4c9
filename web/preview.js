// Previews of all frames of a video while it is sampled, on the node that samples and on the subgraphs around it.
// nodes/host/preview.py sends them at every step, as one picture with the frames in rows.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

import { addElement, chain } from "./widgets.js";

const EVENT = "videocomposer.preview";
const STOCK_PREVIEW = "b_preview_with_metadata";
const SETTING = "VideoComposer.Preview";
const WIDGET = "videocomposer_preview";
const LARGEST = 512; // pixels of the shown frame's longer side: a latent holds no more than smooth colours
const TALLEST = 320; // height that a preview claims on its node

/** The frame to show after so many milliseconds, of a loop. */
export function frameAt(milliseconds, frames, rate) {
  return Math.floor((milliseconds / 1000) * rate) % frames;
}

/** Where a frame lies in the picture, as `drawImage` takes it. */
export function frameArea(index, columns, width, height) {
  return [(index % columns) * width, Math.floor(index / columns) * height, width, height];
}

/** The node of an execution's id, such as "7", or "3:5" in a subgraph, after the nodes around it; none if any is gone. */
export function nodesAround(graph, id) {
  const nodes = [];
  for (const part of String(id).split(":")) {
    const node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    if (!node) return [];
    nodes.push(node);
    graph = node.subgraph;
  }
  return nodes;
}

/** What is shown on one node. Its widget is made once: pages keep handlers of every widget that a node ever had. */
class Screen {
  constructor(node) {
    this.node = node;
    this.canvas = document.createElement("canvas");
    this.canvas.style.cssText = "width: 100%; height: 100%; object-fit: contain; pointer-events: none";
    this.widget = addElement(node, WIDGET, this.canvas, {
      hideOnZoom: false,
      getMinHeight: () => this.height(),
      getMaxHeight: () => (this.widget.hidden ? 0 : undefined),
    });
    this.widget.hidden = true;
    chain(node, "onSerialize", (data) => {
      if (this.grown) data.size = [...this.before]; // what is saved or undone knows nothing of previews
    });
  }

  /**
   * Whether the node is as large as a preview made it: one that the user resized meanwhile stays as it is. Nodes of HTML
   * take their height from all that is in them, so of those the width tells, which the page rounds.
   */
  get grown() {
    const sides = globalThis.LiteGraph?.vueNodesMode ? 1 : 2;
    return !this.widget.hidden && this.after.slice(0, sides).every((side, i) => Math.abs(side - this.node.size[i]) < 1);
  }

  height() {
    if (this.widget.hidden) return 0;
    const { width, height } = this.canvas;
    return Math.min(TALLEST, Math.round((this.node.size[0] * height) / width));
  }

  show(width, height) {
    const scale = LARGEST / Math.max(width, height);
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    if (!this.widget.hidden) return;
    this.before = [...this.node.size];
    this.toggle(false);
    const [wide, high] = this.before;
    this.node.setSize([wide, Math.max(high, this.node.computeSize()[1])]);
    this.after = [...this.node.size];
  }

  hide() {
    if (this.widget.hidden) return;
    const { grown } = this;
    this.toggle(true);
    if (grown) this.node.setSize(this.before);
  }

  toggle(hidden) {
    this.widget.hidden = hidden;
    this.widget.options.hidden = hidden; // what the newer nodes look at
    this.canvas.style.display = hidden ? "none" : "";
    this.node.graph?.setDirtyCanvas(true, true);
  }

  draw(picture, area) {
    const context = this.canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, ...area, 0, 0, this.canvas.width, this.canvas.height);
  }
}

/** The previews that are shown, by the ids of the nodes that sample. It listens and draws only while there are any. */
class Previews {
  screens = new WeakMap(); // node -> Screen
  shown = new Map(); // id -> {nodes, message, picture, since, drawn}

  /** Whether a node's preview is to be seen here. The first pages with nodes of HTML showed no widgets like ours. */
  covers(id) {
    const preview = this.shown.get(String(id));
    if (!preview) return false;
    return !globalThis.LiteGraph?.vueNodesMode || preview.nodes.some((node) => this.screens.get(node)?.canvas.isConnected);
  }

  async receive(message) {
    const id = String(message.node);
    const nodes = nodesAround(app.rootGraph ?? app.graph, id);
    if (!nodes.length || nodes.at(-1).comfyClass !== message.type || !enabled()) return this.end(id);
    if (!this.shown.size) this.start();
    const preview = this.shown.get(id) ?? { nodes, since: performance.now() };
    for (const gone of preview.nodes) if (!nodes.includes(gone)) this.screens.get(gone)?.hide();
    Object.assign(preview, { nodes, message });
    this.shown.set(id, preview);
    const picture = await decoded(message.image);
    // The run may have ended while the picture was decoded, or the next step's have come.
    if (!picture || this.shown.get(id) !== preview || preview.message !== message) return;
    const rows = Math.ceil(message.frames / message.columns);
    preview.size = [picture.naturalWidth / message.columns, picture.naturalHeight / rows];
    preview.picture = picture;
    preview.drawn = undefined;
    for (const node of nodes) this.screen(node).show(...preview.size);
  }

  screen(node) {
    if (!this.screens.has(node)) this.screens.set(node, new Screen(node));
    return this.screens.get(node);
  }

  draw = (now) => {
    this.request = requestAnimationFrame(this.draw);
    for (const preview of this.shown.values()) {
      if (!preview.picture) continue;
      const { frames, columns, rate } = preview.message;
      const index = frameAt(Math.max(0, now - preview.since), frames, rate);
      if (index === preview.drawn) continue;
      preview.drawn = index;
      const area = frameArea(index, columns, ...preview.size);
      for (const node of preview.nodes) this.screens.get(node)?.draw(preview.picture, area);
    }
  };

  end(id) {
    const preview = this.shown.get(id);
    if (!preview) return;
    this.shown.delete(id);
    for (const node of preview.nodes) this.screens.get(node)?.hide();
    if (!this.shown.size) this.stop();
  }

  endAll = () => [...this.shown.keys()].forEach((id) => this.end(id));

  // The host names the node that runs, or none where all is done; without either, an empty queue ends a preview.
  onExecuting = ({ detail }) => {
    for (const id of [...this.shown.keys()]) if (id !== String(detail)) this.end(id);
  };
  onStatus = ({ detail }) => {
    if (!detail?.exec_info?.queue_remaining) this.endAll();
  };

  // What ends previews, listened to while there are any.
  endings = {
    executing: this.onExecuting,
    status: this.onStatus,
    execution_start: this.endAll,
    execution_error: this.endAll,
    execution_interrupted: this.endAll,
    execution_success: this.endAll,
    reconnecting: this.endAll,
  };

  start() {
    for (const [event, listener] of Object.entries(this.endings)) api.addEventListener(event, listener);
    this.request = requestAnimationFrame(this.draw);
  }

  stop() {
    for (const [event, listener] of Object.entries(this.endings)) api.removeEventListener(event, listener);
    cancelAnimationFrame(this.request);
  }
}

async function decoded(url) {
  const picture = new Image();
  picture.src = url;
  try {
    await picture.decode();
    return picture;
  } catch {
    return null; // a damaged picture is one preview less
  }
}

function enabled() {
  return (app.extensionManager?.setting?.get(SETTING) ?? true) !== false;
}

const previews = new Previews();
api.addEventListener(EVENT, ({ detail }) => previews.receive(detail));
// ComfyUI's own preview shows the first frame alone. This listener comes before the page's own, since scripts are
// loaded before the page listens; ours comes first at every step, so what is shown here needs no second picture.
api.addEventListener(STOCK_PREVIEW, (event) => {
  if (previews.covers(event.detail.displayNodeId ?? event.detail.nodeId)) event.stopImmediatePropagation();
});

app.registerExtension({
  name: "videocomposer.preview",
  settings: [
    {
      id: SETTING,
      name: "Preview all frames of a video while it is sampled",
      category: ["VideoComposer", "Sampling", "Preview"],
      tooltip: "A looping animation on the node that samples.",
      type: "boolean",
      defaultValue: true,
    },
  ],
});
