// An editor for the tracks of VCMotionFromTracks. The text of the widget 'tracks' is the only data: the editor shows it
// and writes it, and Python reads nothing else.

import { app } from "../../scripts/app.js";
import { Background, fileOf, nameOf, upload } from "./background.js";
import { drawGround, drawReach, drawTrack } from "./drawing.js";
import * as geometry from "./geometry.js";
import { addElement, asOneStep, chain } from "./widgets.js";

const NODE = "VCMotionFromTracks";
const WIDGET = "videocomposer_tracks";
const REACH = 9; // maximum distance in page pixels at which a click hits a point or a line
const DOUBLE = 600; // maximum milliseconds of a double click
const HEIGHT = 340; // minimum height of the editor
const WIDTH = 340; // minimum width of the node

const WORDS = {
  en: {
    track: "New track",
    box: "New box",
    clear: "Clear",
    background: "Background…",
    noBackground: "No background",
    trackTip: "The next click starts another track",
    boxTip: "The next drag draws a box, as does a drag with Shift. Everything in the box moves together. Clicks add its path",
    clearTip: "Remove all tracks",
    backgroundTip:
      "Choose the first frame of the video and draw on it. The canvas takes its size; existing tracks keep their relative position",
    noBackgroundTip: "Remove the image; the canvas keeps its size",
    hint: "click to add, drag to move, right-click to delete",
    drawBox: "drag a box around the object to move",
    linked: "The tracks come from the connected node.",
    unreadable: "The text above is not valid JSON for tracks. Correct it, or press Clear.",
    missing: "The background {name} is not in ComfyUI's input folder. Choose it again.",
    forgotten: "ComfyUI has deleted the background of the last run with its temporary files. Run again to see it.",
    unreadableImage: "This browser cannot read the background {name}. Choose another image.",
    refused: "The background could not be sent to ComfyUI ({name}). Choose it again.",
    shape: "The canvas and its background have different aspect ratios, so the tracks are misplaced. Choose the background again.",
  },
  zh: {
    track: "新轨迹",
    box: "新方框",
    clear: "清空",
    background: "背景…",
    noBackground: "移除背景",
    trackTip: "下一次点击开始另一条轨迹",
    boxTip: "下一次拖动画出方框，也可以按住 Shift 拖动。框内的内容整体移动，之后的点击为它添加路径",
    clearTip: "删除所有轨迹",
    backgroundTip: "选择视频的第一帧图像，在它上面绘制。画布采用图像的尺寸，已有的轨迹保持相对位置",
    noBackgroundTip: "移除图像，画布尺寸不变",
    hint: "点击添加，拖动移动，右键删除",
    drawBox: "拖动画出方框，框住要移动的东西",
    linked: "轨迹来自所连接的节点。",
    unreadable: "上面的文本不是有效的轨迹 JSON。请更正，或按“清空”。",
    missing: "ComfyUI 的输入文件夹中没有背景 {name}。请重新选择。",
    forgotten: "上次运行的背景已随 ComfyUI 的临时文件被删除。再次运行即可看到。",
    unreadableImage: "此浏览器无法读取背景 {name}。请选择另一张图像。",
    refused: "背景上传到 ComfyUI 失败（{name}）。请重新选择。",
    shape: "画布与背景的宽高比不同，轨迹会错位。请重新选择背景。",
  },
};

function words() {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  return WORDS[locale.split("-")[0]] ?? WORDS.en;
}

class TrackEditor {
  active = 0; // the index of the track that gets new points; the number of tracks starts a new one
  addedAt = -Infinity; // when a click last added a point
  dragged = null; // the point {track, point} that is being dragged
  boxing = false; // whether the next drag draws a box
  corners = null; // corners of the box that is being drawn
  lastVideoSize = [0, 0]; // [width, height] of the video in the last run
  drawnState = ""; // the state that the canvas shows

  constructor(node) {
    this.node = node;
    this.words = words();
    this.background = new Background(node);
    this.element = document.createElement("div");
    this.element.style.cssText = "display: flex; flex-direction: column; gap: 4px; min-height: 0; font-size: 11px";
    this.canvas = document.createElement("canvas");
    this.canvas.style.cssText = "flex: 1; min-height: 0; width: 100%; touch-action: none; cursor: crosshair";
    this.caption = document.createElement("div");
    this.caption.style.cssText = "flex: none; max-height: 3.9em; overflow: hidden; text-align: center; color: #999";
    this.element.append(this.bar(), this.canvas, this.caption);
    const on = {
      pointerdown: this.press,
      pointermove: this.move,
      pointerup: this.release,
      pointercancel: this.release,
      dblclick: this.remove,
      contextmenu: this.remove,
      wheel: forward,
    };
    for (const [event, listener] of Object.entries(on)) this.canvas.addEventListener(event, listener);
    this.resized = new ResizeObserver(() => this.refresh());
    this.widget = addElement(node, WIDGET, this.element, {
      hideOnZoom: true,
      getMinHeight: () => HEIGHT,
      onDraw: () => this.refresh(),
    });
    for (const name of ["tracks", "canvas_width", "canvas_height", "width", "height", "radius"]) {
      chain(this.input(name), "callback", () => this.refresh());
    }
  }

  bar() {
    const bar = document.createElement("div");
    bar.style.cssText = "display: flex; gap: 4px; flex: none";
    const actions = { track: this.newTrack, box: this.newBox, clear: this.clear, background: this.chooseBackground };
    this.buttons = {};
    for (const [name, action] of Object.entries(actions)) {
      const button = (this.buttons[name] = document.createElement("button"));
      this.label(name);
      button.dataset.action = name;
      button.style.cssText =
        "flex: 1 1 auto; padding: 3px; cursor: pointer; white-space: nowrap; border-radius: 4px; border: 1px solid var(--border-color, #555);" +
        "background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd)";
      button.addEventListener("click", action);
      bar.append(button);
    }
    return bar;
  }

  label(name, words = name) {
    this.buttons[name].textContent = this.words[words];
    this.buttons[name].title = this.words[`${words}Tip`];
  }

  connect() {
    this.resized.observe(this.canvas);
    // HTML nodes are not drawn again when a script has set a widget.
    this.watching = setInterval(() => globalThis.LiteGraph?.vueNodesMode && this.refresh(), 250);
    this.showBackground();
  }

  disconnect() {
    this.resized.disconnect();
    clearInterval(this.watching);
    cancelAnimationFrame(this.request);
    this.request = undefined;
    this.background.show("");
  }

  // --- The widgets ---

  input(name) {
    return this.node.widgets.find((widget) => widget.name === name);
  }

  isLinked(name) {
    return this.node.inputs?.some((input) => input.name === name && input.link != null) ?? false;
  }

  get linked() {
    return this.isLinked("tracks");
  }

  get tracks() {
    return geometry.parseTracks(this.input("tracks").value);
  }

  set tracks(tracks) {
    // Points are meaningless without the canvas size, so the shown size is stored from now on.
    this.setSize(this.size);
    this.input("tracks").value = geometry.formatTracks(tracks);
    this.node.graph?.setDirtyCanvas(true, true);
    this.refresh();
  }

  /** [width, height] of the canvas in its own pixels; 0 in the widgets means the connected image's or the video's. */
  get size() {
    const [width, height] = ["canvas_width", "canvas_height"].map((name) => this.input(name).value);
    if (width && height) return [width, height];
    const image = this.isLinked("image") && this.background.size;
    const likely = image || geometry.likelySize(this.tracks ?? [], this.videoSize);
    return [width || likely[0], height || likely[1]];
  }

  setSize([width, height]) {
    this.input("canvas_width").value = width;
    this.input("canvas_height").value = height;
  }

  /** [width, height] of the video; 0 if the checkpoint's size is used and no run has reported it yet. */
  get videoSize() {
    return ["width", "height"].map((name, i) => this.input(name).value || this.lastVideoSize[i]);
  }

  // --- Editing ---

  /** Position and scale of the canvas in its element, in pixels of the element before the page's zoom. */
  get placement() {
    return geometry.fitInside(this.size, [this.canvas.clientWidth || 1, this.canvas.clientHeight || 1]);
  }

  place(event) {
    const shown = this.canvas.getBoundingClientRect();
    const { scale, left, top } = this.placement;
    const x = ((event.clientX - shown.left) / shown.width) * this.canvas.clientWidth;
    const y = ((event.clientY - shown.top) / shown.height) * this.canvas.clientHeight;
    return [(x - left) / scale, (y - top) / scale];
  }

  get reach() {
    return REACH / this.placement.scale;
  }

  get editable() {
    return !this.linked && this.tracks !== null;
  }

  press = (event) => {
    if (event.button === 1) return forward(event);
    if (event.button !== 0 || !this.editable) return;
    const [place, tracks] = [this.place(event), this.tracks];
    const [x, y] = geometry.clampTo(place, this.size);
    if (Math.hypot(place[0] - x, place[1] - y) > this.reach) return; // outside the canvas
    this.canvas.setPointerCapture(event.pointerId);
    if (this.boxing || event.shiftKey) {
      this.corners = [[x, y], [x, y]];
      return;
    }
    const hit = geometry.nearestPoint(tracks, place, this.reach, this.active);
    if (hit) {
      this.dragged = hit;
    } else {
      const { tracks: more, ...added } = geometry.withPoint(tracks, this.active, [x, y], this.reach);
      this.dragged = added;
      this.addedAt = event.timeStamp;
      this.tracks = more;
    }
    this.active = this.dragged.track;
    this.refresh(true);
  };

  move = (event) => {
    if (event.buttons & 4) return forward(event);
    const place = geometry.clampTo(this.place(event), this.size);
    if (this.corners) {
      this.corners[1] = place;
      return this.refresh(true);
    }
    const tracks = this.dragged && this.tracks;
    if (!tracks?.[this.dragged.track]?.points[this.dragged.point]) return;
    this.tracks = geometry.withMoved(tracks, this.dragged, place);
  };

  release = (event) => {
    if (event.button === 1) return forward(event);
    const box = this.corners && geometry.boxBetween(...this.corners);
    if (box && event.type === "pointerup" && Math.min(box[2], box[3]) > this.reach / 2 && this.tracks) {
      this.active = this.tracks.length;
      this.boxing = false;
      this.tracks = geometry.withBox(this.tracks, box);
    }
    this.dragged = this.corners = null;
    this.refresh(true);
  };

  remove = (event) => {
    event.preventDefault();
    event.stopPropagation();
    // The first click of a double click on an empty place has just added the point under it.
    if (!this.editable || (event.type === "dblclick" && event.timeStamp - this.addedAt < DOUBLE)) return;
    const hit = geometry.nearestPoint(this.tracks, this.place(event), this.reach, this.active);
    if (!hit) return;
    const count = this.tracks.length;
    asOneStep(() => (this.tracks = geometry.withoutPoint(this.tracks, hit)));
    if (this.tracks.length < count && this.active >= hit.track) this.active = Math.max(0, this.active - 1);
  };

  newTrack = () => {
    this.active = this.tracks?.length ?? 0;
    this.boxing = false;
    this.refresh(true);
  };

  newBox = () => {
    this.boxing = !this.boxing;
    this.refresh(true);
  };

  clear = () => {
    if (this.linked) return;
    this.active = 0;
    asOneStep(() => (this.tracks = []));
  };

  // --- The background ---

  chooseBackground = () => {
    if (this.background.image) {
      asOneStep(() => (this.background.name = ""));
      return this.showBackground();
    }
    const chooser = document.createElement("input");
    chooser.type = "file";
    chooser.accept = "image/*";
    chooser.addEventListener("change", () => chooser.files[0] && this.takeFile(chooser.files[0]));
    chooser.click();
  };

  async takeFile(file) {
    try {
      await this.takeBackground(await upload(file));
    } catch (error) {
      Object.assign(this.background, { problem: "refused", shown: error.message });
      this.refresh(true);
    }
  }

  /** Shows the node's stored background, after it was loaded, copied or undone. */
  async showBackground() {
    if (await this.background.show()) this.refresh(true);
  }

  /** Sets another background: the canvas gets its size, and the tracks keep their position on it. */
  async takeBackground(name) {
    const { background } = this;
    if (!(await background.show(name)) || !this.node.graph) return;
    if (background.image && (name !== background.name || String(background.size) !== String(this.size))) {
      asOneStep(() => {
        background.name = name;
        if (!this.linked) this.resize(background.size);
      });
    }
    this.refresh(true);
  }

  resize(size) {
    const { tracks, size: before } = this;
    if (tracks?.length) this.input("tracks").value = geometry.formatTracks(geometry.onCanvas(tracks, before, size));
    const radius = this.input("radius");
    radius.value = Math.round(((radius.value * Math.min(...size)) / Math.min(...before)) * 10) / 10;
    this.setSize(size);
    this.node.graph.setDirtyCanvas(true, true);
  }

  /** Uses the output of a run: the size of the video, and the connected image. */
  executed(output) {
    this.lastVideoSize = output?.videocomposer_size?.[0] ?? this.lastVideoSize;
    const image = output?.videocomposer_background?.[0];
    if (image) this.takeBackground(nameOf(image));
    else this.refresh();
  }

  // --- Drawing ---

  /** Draws with the next frame of the page, if something changed. */
  refresh(changed = false) {
    if (changed) this.drawnState = "";
    if (!this.canvas.isConnected) return;
    this.request ??= requestAnimationFrame(() => {
      this.request = undefined;
      this.draw();
    });
  }

  draw() {
    const { canvas, size, linked, active, videoSize, background } = this;
    const sharpness = Math.min(4, (devicePixelRatio * canvas.getBoundingClientRect().width) / canvas.clientWidth) || 1;
    const outer = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(side * sharpness));
    const text = this.input("tracks").value;
    const imageLinked = this.isLinked("image");
    const radius = this.input("radius").value;
    const state = JSON.stringify([text, size, outer, linked, imageLinked, active, videoSize, radius]);
    if (state === this.drawnState || !outer[0] || !outer[1]) return;
    this.drawnState = state;
    [canvas.width, canvas.height] = outer;
    const context = canvas.getContext("2d");
    const { scale, left, top } = geometry.fitInside(size, outer);
    context.setTransform(scale, 0, 0, scale, left, top);
    const pixel = sharpness / scale; // size of a page pixel in canvas pixels
    drawGround(context, size, background.image, videoSize, pixel);
    const { tracks, corners } = this;
    if (tracks && !linked) {
      tracks.forEach((track, number) => drawTrack(context, track, number, number === active, pixel));
      if (tracks[active] && !tracks[active].box) this.drawRadius(context, tracks[active].points[0], pixel);
    }
    if (corners) {
      drawReach(context, tracks.length, pixel, () => context.rect(...geometry.boxBetween(...corners)));
    }
    this.describe(tracks, imageLinked);
  }

  drawRadius(context, [x, y], pixel) {
    const radius = this.input("radius").value || Math.min(...this.size) / 8;
    drawReach(context, this.active, pixel, () => context.arc(x, y, radius, 0, 2 * Math.PI));
  }

  /** Shows in the caption what the user can do, or what is wrong. */
  describe(tracks, imageLinked) {
    const { words, background, size } = this;
    // The connected image is stretched with its canvas; any other image keeps its own shape in the video.
    const distorted = background.image && !imageLinked && !geometry.sameShape(background.size, size);
    const problem =
      (this.linked && "linked") || (!tracks && "unreadable") || background.problem || (distorted && "shape") || "";
    const hint = words[this.boxing ? "drawBox" : "hint"];
    const name = fileOf(background.shown)?.filename ?? background.shown;
    this.caption.textContent = problem ? words[problem].replace("{name}", name) : `${size.join(" × ")}: ${hint}`;
    this.caption.style.color = problem ? "#ffb347" : "#999";
    this.label("background", background.image ? "noBackground" : "background");
    this.buttons.box.style.outline = this.boxing ? "1px solid #ffb347" : "";
  }
}

/** Forwards a pointer or wheel event to the graph, to pan and zoom it. */
function forward(event) {
  event.preventDefault();
  event.stopPropagation();
  app.canvas.canvas.dispatchEvent(new event.constructor(event.type, event));
}

app.registerExtension({
  name: "videocomposer.tracks",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const editor = new TrackEditor(node);
    chain(node, "onAdded", () => editor.connect());
    chain(node, "onRemoved", () => editor.disconnect());
    chain(node, "onConfigure", () => editor.showBackground());
    chain(node, "onExecuted", (output) => editor.executed(output));
    chain(node, "onConnectionsChange", () => editor.refresh());
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width, WIDTH), Math.max(node.size[1], height)]);
  },
});
