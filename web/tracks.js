// An editor for the tracks of VCMotionFromTracks. The text of the widget 'tracks' is the truth: the editor shows what it
// says and writes it anew; Python reads nothing else.

import { app } from "../../scripts/app.js";
import * as geometry from "./geometry.js";

const NODE = "VCMotionFromTracks";
const WIDGET = "videocomposer_tracks";
const REACH = 9; // pixels of the page around a point or a line that count as on it
const DOUBLE = 600; // milliseconds that a double click takes at most
const HEIGHT = 340; // of the editor, at least
const WIDTH = 340; // of the node, at least

const WORDS = {
  en: {
    track: "New track",
    clear: "Clear",
    background: "Background…",
    trackTip: "The next click begins another track",
    clearTip: "Remove all tracks",
    backgroundTip: "Show a picture behind the tracks. It is only for drawing and is not saved.",
    hint: "click adds, drag moves, right click deletes",
    linked: "The tracks come from the connected node.",
    unreadable: "The text above is no JSON of tracks. Correct it, or press Clear.",
  },
  zh: {
    track: "新轨迹",
    clear: "清空",
    background: "背景…",
    trackTip: "下一次点击将开始另一条轨迹",
    clearTip: "删除所有轨迹",
    backgroundTip: "在轨迹后面显示一张图片，只用于绘制，不会保存。",
    hint: "点击添加，拖动移动，右键删除",
    linked: "轨迹来自所连接的节点。",
    unreadable: "上面的文本不是轨迹的 JSON。请更正，或按“清空”。",
  },
};

function words() {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  return WORDS[locale.split("-")[0]] ?? WORDS.en;
}

function color(track, alpha = 1) {
  return `hsl(${(200 + track * 137) % 360} 85% 62% / ${alpha})`; // steps of the golden angle: neighbours differ
}

class TrackEditor {
  active = 0; // the number of the track that takes new points; that of none yet begins one
  addedAt = -Infinity; // when a click last made a point
  held = null; // the point {track, point} that is being dragged
  picture = null;
  drawn = ""; // what the canvas shows

  constructor(node) {
    this.node = node;
    this.words = words();
    this.element = document.createElement("div");
    this.element.style.cssText = "display: flex; flex-direction: column; gap: 4px; min-height: 0; font-size: 11px";
    this.canvas = document.createElement("canvas");
    this.canvas.style.cssText = "flex: 1; min-height: 0; width: 100%; touch-action: none; cursor: crosshair";
    this.caption = document.createElement("div");
    this.caption.style.cssText = "flex: none; height: 14px; overflow: hidden; text-align: center; color: #999";
    this.element.append(this.bar(), this.canvas, this.caption);
    const on = {
      pointerdown: this.press,
      pointermove: this.move,
      pointerup: this.release,
      pointercancel: this.release,
      dblclick: this.remove,
      contextmenu: this.remove,
      wheel: this.wheel,
    };
    for (const [event, listener] of Object.entries(on)) this.canvas.addEventListener(event, listener);
    this.resized = new ResizeObserver(() => this.refresh());
    this.widget = node.addDOMWidget(WIDGET, "videocomposer", this.element, {
      serialize: false,
      hideOnZoom: true,
      getMinHeight: () => HEIGHT,
      onDraw: () => this.refresh(),
    });
    this.widget.serialize = false;
    for (const name of ["tracks", "canvas_width", "canvas_height", "width", "height", "radius"]) {
      this.follow(this.input(name));
    }
  }

  bar() {
    const bar = document.createElement("div");
    bar.style.cssText = "display: flex; gap: 4px; flex: none";
    const buttons = { track: this.newTrack, clear: this.clear, background: this.chooseBackground };
    for (const [name, action] of Object.entries(buttons)) {
      const button = document.createElement("button");
      button.textContent = this.words[name];
      button.title = this.words[`${name}Tip`];
      button.dataset.action = name;
      button.style.cssText =
        "flex: 1; padding: 3px; cursor: pointer; border-radius: 4px; border: 1px solid var(--border-color, #555);" +
        "background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd)";
      button.addEventListener("click", action);
      bar.append(button);
    }
    return bar;
  }

  connect() {
    this.resized.observe(this.canvas);
  }

  disconnect() {
    this.resized.disconnect();
    cancelAnimationFrame(this.request);
    this.request = undefined;
    this.showPicture(null);
  }

  // -------------------------------------------------------------------------------------------------------------
  // The widgets
  // -------------------------------------------------------------------------------------------------------------

  input(name) {
    return this.node.widgets.find((widget) => widget.name === name);
  }

  follow(widget) {
    const { callback } = widget;
    widget.callback = (...args) => {
      const result = callback?.apply(widget, args);
      this.refresh();
      return result;
    };
  }

  get linked() {
    return this.node.inputs?.some((input) => input.name === "tracks" && input.link != null) ?? false;
  }

  get tracks() {
    return geometry.parseTracks(this.input("tracks").value);
  }

  set tracks(tracks) {
    // Points mean nothing without the size of what they are on: from now on it is the one that was shown.
    const [width, height] = this.size;
    this.input("canvas_width").value = width;
    this.input("canvas_height").value = height;
    this.input("tracks").value = geometry.formatTracks(tracks);
    this.node.graph?.setDirtyCanvas(true, true);
    this.refresh();
  }

  /** [width, height] of the canvas in its own pixels; 0 in the widgets is the video's size. */
  get size() {
    const [width, height] = ["canvas_width", "canvas_height"].map((name) => this.input(name).value);
    if (width && height) return [width, height];
    const likely = geometry.likelySize(this.tracks ?? [], this.videoSize);
    return [width || likely[0], height || likely[1]];
  }

  get videoSize() {
    return ["width", "height"].map((name) => this.input(name).value);
  }

  // -------------------------------------------------------------------------------------------------------------
  // Editing
  // -------------------------------------------------------------------------------------------------------------

  /** How the canvas lies in its element, in pixels of the element before the page's zoom. */
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
    if (Math.hypot(place[0] - x, place[1] - y) > this.reach) return; // beside the canvas
    const hit = geometry.nearestPoint(tracks, place, this.reach, this.active);
    if (hit) {
      this.held = hit;
    } else {
      const { tracks: more, ...added } = geometry.withPoint(tracks, this.active, [x, y], this.reach);
      this.held = added;
      this.addedAt = event.timeStamp;
      this.tracks = more;
    }
    this.active = this.held.track;
    this.canvas.setPointerCapture(event.pointerId);
    this.refresh(true);
  };

  move = (event) => {
    if (event.buttons & 4) return forward(event);
    const tracks = this.held && this.tracks;
    if (!tracks?.[this.held.track]?.[this.held.point]) return;
    this.tracks = geometry.withMoved(tracks, this.held, geometry.clampTo(this.place(event), this.size));
  };

  release = (event) => {
    if (event.button === 1) return forward(event);
    this.held = null;
    this.refresh(true);
  };

  remove = (event) => {
    event.preventDefault();
    event.stopPropagation();
    // A double click on nothing has just made the point that it is on now.
    if (!this.editable || (event.type === "dblclick" && event.timeStamp - this.addedAt < DOUBLE)) return;
    const hit = geometry.nearestPoint(this.tracks, this.place(event), this.reach, this.active);
    if (!hit) return;
    const count = this.tracks.length;
    this.tracks = geometry.withoutPoint(this.tracks, hit);
    if (this.tracks.length < count && this.active >= hit.track) this.active = Math.max(0, this.active - 1);
    remember();
  };

  wheel = (event) => forward(event);

  newTrack = () => {
    this.active = this.tracks?.length ?? 0;
    this.refresh(true);
  };

  clear = () => {
    if (this.linked) return;
    this.active = 0;
    this.tracks = [];
    remember();
  };

  chooseBackground = () => {
    const chooser = document.createElement("input");
    chooser.type = "file";
    chooser.accept = "image/*";
    chooser.addEventListener("change", () => chooser.files[0] && this.showPicture(chooser.files[0]));
    chooser.click();
  };

  async showPicture(file) {
    this.picture?.close();
    this.picture = file && (await createImageBitmap(file).catch(() => null));
    this.refresh(true);
  }

  // -------------------------------------------------------------------------------------------------------------
  // Drawing
  // -------------------------------------------------------------------------------------------------------------

  /** Draws with the next frame of the page, if something changed. */
  refresh(changed = false) {
    if (changed) this.drawn = "";
    if (!this.canvas.isConnected) return;
    this.request ??= requestAnimationFrame(() => {
      this.request = undefined;
      this.draw();
    });
  }

  draw() {
    const { canvas, size, linked, active, videoSize } = this;
    const sharpness = Math.min(4, (devicePixelRatio * canvas.getBoundingClientRect().width) / canvas.clientWidth) || 1;
    const outer = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(side * sharpness));
    const text = this.input("tracks").value;
    const state = JSON.stringify([text, size, outer, linked, active, videoSize, this.input("radius").value]);
    if (state === this.drawn || !outer[0] || !outer[1]) return;
    this.drawn = state;
    [canvas.width, canvas.height] = outer;
    const context = canvas.getContext("2d");
    const { scale, left, top } = geometry.fitInside(size, outer);
    context.setTransform(scale, 0, 0, scale, left, top);
    const pixel = sharpness / scale; // one of the page, in those of the canvas
    this.drawGround(context, size, pixel);
    const { tracks } = this;
    if (tracks && !linked) {
      tracks.forEach((track, number) => drawTrack(context, track, number, number === active, pixel));
      if (tracks[active]) this.drawRadius(context, tracks[active][0], pixel);
    }
    const problem = linked ? this.words.linked : !tracks && this.words.unreadable;
    this.caption.textContent = problem || `${size.join(" × ")}: ${this.words.hint}`;
    this.caption.style.color = problem ? "#ffb347" : "#999";
  }

  drawGround(context, [width, height], pixel) {
    context.fillStyle = "#1c1c1f";
    context.fillRect(0, 0, width, height);
    if (this.picture) {
      const { scale, left, top } = geometry.fitInside([this.picture.width, this.picture.height], [width, height]);
      context.drawImage(this.picture, left, top, this.picture.width * scale, this.picture.height * scale);
    }
    context.lineWidth = pixel / 2;
    context.strokeStyle = "#ffffff30";
    context.beginPath();
    for (let i = 1; i < 8; i++) {
      context.moveTo((width * i) / 8, 0);
      context.lineTo((width * i) / 8, height);
      context.moveTo(0, (height * i) / 8);
      context.lineTo(width, (height * i) / 8);
    }
    context.stroke();
    const [videoWidth, videoHeight] = this.videoSize;
    if (!videoWidth || !videoHeight) return;
    const area = geometry.visibleArea([width, height], [videoWidth, videoHeight]);
    context.fillStyle = "#00000099"; // what the video does not show
    context.beginPath();
    context.rect(0, 0, width, height);
    context.rect(...area);
    context.fill("evenodd");
  }

  drawRadius(context, [x, y], pixel) {
    const radius = this.input("radius").value || Math.min(...this.size) / 8;
    context.strokeStyle = color(this.active, 0.5);
    context.setLineDash([4 * pixel, 4 * pixel]);
    context.lineWidth = pixel;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.stroke();
    context.setLineDash([]);
  }
}

function drawTrack(context, track, number, active, pixel) {
  context.strokeStyle = context.fillStyle = color(number, active ? 1 : 0.6);
  context.lineWidth = (active ? 2.5 : 1.5) * pixel;
  context.lineJoin = "round";
  context.beginPath();
  track.forEach(([x, y]) => context.lineTo(x, y));
  context.stroke();
  track.forEach(([x, y], point) => {
    context.beginPath();
    context.arc(x, y, (point ? 4 : 5.5) * pixel, 0, 2 * Math.PI);
    context.fillStyle = point ? color(number, active ? 1 : 0.6) : "#1c1c1f"; // the first one is a ring
    context.fill();
    context.lineWidth = 2 * pixel;
    context.stroke();
  });
  const [from, to] = track.slice(-2);
  if (!to) return;
  const angle = Math.atan2(to[1] - from[1], to[0] - from[0]);
  context.save();
  context.translate(...to);
  context.rotate(angle);
  context.beginPath();
  context.moveTo(13 * pixel, 0);
  context.lineTo(4 * pixel, 6 * pixel);
  context.lineTo(4 * pixel, -6 * pixel);
  context.fillStyle = color(number, active ? 1 : 0.6);
  context.fill();
  context.restore();
}

/** Hands a pointer's or wheel's event on to the graph, to pan and zoom it. */
function forward(event) {
  event.preventDefault();
  event.stopPropagation();
  app.canvas.canvas.dispatchEvent(new event.constructor(event.type, event));
}

/** Makes an undo step of a change that no release of the mouse follows, which is when the page makes its own. */
function remember() {
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
}

function chain(node, name, action) {
  const before = node[name];
  node[name] = function (...args) {
    const result = before?.apply(this, args);
    action();
    return result;
  };
}

app.registerExtension({
  name: "videocomposer.tracks",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const editor = new TrackEditor(node);
    chain(node, "onAdded", () => editor.connect());
    chain(node, "onRemoved", () => editor.disconnect());
    chain(node, "onConfigure", () => editor.refresh());
    chain(node, "onConnectionsChange", () => editor.refresh());
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width, WIDTH), Math.max(node.size[1], height)]);
  },
});
