// Previews of all frames of a video during sampling, on the sampler node and on the subgraphs around it.
// nodes/host/preview.py sends them at every step, as one image with the frames in rows.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

import { addElement, chain } from "./widgets.js";

const EVENT = "videocomposer.preview";
const STOCK_PREVIEW = "b_preview_with_metadata";
const SETTING = "VideoComposer.Preview";
const WIDGET = "videocomposer_preview";
const LARGEST = 512; // pixels of the shown frame's longer side: a latent's preview contains only smooth colours
const TALLEST = 320; // maximum height of a preview on its node

/** Returns the frame of a loop to show after this time. */
export function frameAt(milliseconds, frames, rate) {
  return Math.floor((milliseconds / 1000) * rate) % frames;
}

/** Returns the area of a frame in the image, as arguments of `drawImage`. */
export function frameArea(index, columns, width, height) {
  return [(index % columns) * width, Math.floor(index / columns) * height, width, height];
}

/** Returns the nodes of an execution's id ("7", or "3:5" in a subgraph), outermost first; empty if any is missing. */
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

/** The preview on one node. Its widget is created once: pages keep the handlers of every widget that a node ever had. */
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
      if (this.grown) data.size = [...this.before]; // saved files and undo steps do not include previews
    });
  }

  /**
   * Whether the node still has the size that a preview gave it: if the user has resized it, its size is kept. The height
   * of HTML nodes depends on their contents, so only their width is compared, which the page rounds.
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
    this.widget.options.hidden = hidden; // newer nodes use this one
    this.canvas.style.display = hidden ? "none" : "";
    this.node.graph?.setDirtyCanvas(true, true);
  }

  draw(image, area) {
    const context = this.canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, ...area, 0, 0, this.canvas.width, this.canvas.height);
  }
}

/** The shown previews, by the ids of the sampler nodes. It listens and draws only while there are any. */
class Previews {
  screens = new WeakMap(); // node -> Screen
  shown = new Map(); // id -> {nodes, message, image, since, drawnIndex}

  /** Whether a node's preview is visible here. The first pages with HTML nodes did not show widgets like ours. */
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
    for (const old of preview.nodes) if (!nodes.includes(old)) this.screens.get(old)?.hide();
    Object.assign(preview, { nodes, message });
    this.shown.set(id, preview);
    const image = await decoded(message.image);
    // While the image was decoded, the run may have ended, or the next step's message may have arrived.
    if (!image || this.shown.get(id) !== preview || preview.message !== message) return;
    const rows = Math.ceil(message.frames / message.columns);
    preview.size = [image.naturalWidth / message.columns, image.naturalHeight / rows];
    preview.image = image;
    preview.drawnIndex = undefined;
    for (const node of nodes) this.screen(node).show(...preview.size);
  }

  screen(node) {
    if (!this.screens.has(node)) this.screens.set(node, new Screen(node));
    return this.screens.get(node);
  }

  draw = (now) => {
    this.request = requestAnimationFrame(this.draw);
    for (const preview of this.shown.values()) {
      if (!preview.image) continue;
      const { frames, columns, rate } = preview.message;
      const index = frameAt(Math.max(0, now - preview.since), frames, rate);
      if (index === preview.drawnIndex) continue;
      preview.drawnIndex = index;
      const area = frameArea(index, columns, ...preview.size);
      for (const node of preview.nodes) this.screens.get(node)?.draw(preview.image, area);
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

  // The host sends the id of the running node, or null at the end; without such a message, an empty queue ends a preview.
  onExecuting = ({ detail }) => {
    for (const id of [...this.shown.keys()]) if (id !== String(detail)) this.end(id);
  };
  onStatus = ({ detail }) => {
    if (!detail?.exec_info?.queue_remaining) this.endAll();
  };

  // Events that end previews; registered only while there are any.
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
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
    return image;
  } catch {
    return null; // a damaged image only skips one preview
  }
}

function enabled() {
  return (app.extensionManager?.setting?.get(SETTING) ?? true) !== false;
}

const previews = new Previews();
api.addEventListener(EVENT, ({ detail }) => previews.receive(detail));
// ComfyUI's own preview shows only the first frame. This listener runs before the page's own, because scripts are loaded
// before the page listens. Our message arrives first at every step, so the stock preview is not needed.
api.addEventListener(STOCK_PREVIEW, (event) => {
  if (previews.covers(event.detail.displayNodeId ?? event.detail.nodeId)) event.stopImmediatePropagation();
});

app.registerExtension({
  name: "videocomposer.preview",
  settings: [
    {
      id: SETTING,
      name: "Preview all frames of a video during sampling",
      category: ["VideoComposer", "Sampling", "Preview"],
      tooltip: "Shows a looping animation on the sampling node.",
      type: "boolean",
      defaultValue: true,
    },
  ],
});
