// Drawing functions of the tracks' editor, in pixels of its canvas; `pixel` is the size of one page pixel in them.

import { visibleArea } from "./geometry.js";

const DARK = "#1c1c1f";

function color(track, alpha = 1) {
  return `hsl(${(200 + track * 137) % 360} 85% 62% / ${alpha})`; // steps of the golden angle: neighbours differ
}

/** Draws the ground: an image stretched over the canvas, if any, a grid, and darkness over areas outside the video. */
export function drawGround(context, [width, height], image, [videoWidth, videoHeight], pixel) {
  context.fillStyle = DARK;
  context.fillRect(0, 0, width, height);
  if (image) context.drawImage(image, 0, 0, width, height);
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
  if (!videoWidth || !videoHeight) return;
  context.fillStyle = "#00000099";
  context.beginPath();
  context.rect(0, 0, width, height);
  context.rect(...visibleArea([width, height], [videoWidth, videoHeight]));
  context.fill("evenodd");
}

/** Draws a track: a ring at its start, an arrow at its end, and its box at both. */
export function drawTrack(context, { points, box }, number, active, pixel) {
  const shade = color(number, active ? 1 : 0.6);
  context.strokeStyle = shade;
  if (box) drawBoxes(context, points, box, pixel);
  context.lineWidth = (active ? 2.5 : 1.5) * pixel;
  context.lineJoin = "round";
  context.beginPath();
  points.forEach(([x, y]) => context.lineTo(x, y));
  context.stroke();
  points.forEach(([x, y], point) => {
    context.beginPath();
    context.arc(x, y, (point ? 4 : 5.5) * pixel, 0, 2 * Math.PI);
    context.fillStyle = point ? shade : DARK;
    context.fill();
    context.lineWidth = 2 * pixel;
    context.stroke();
  });
  const [from, to] = points.slice(-2);
  if (to) drawHead(context, from, to, shade, pixel);
}

function drawHead(context, from, to, shade, pixel) {
  context.save();
  context.translate(...to);
  context.rotate(Math.atan2(to[1] - from[1], to[0] - from[0]));
  context.beginPath();
  context.moveTo(13 * pixel, 0);
  context.lineTo(4 * pixel, 6 * pixel);
  context.lineTo(4 * pixel, -6 * pixel);
  context.fillStyle = shade;
  context.fill();
  context.restore();
}

function drawBoxes(context, points, [x, y, width, height], pixel) {
  const [first, last] = [points[0], points.at(-1)];
  context.lineWidth = 1.5 * pixel;
  context.strokeRect(x, y, width, height);
  if (points.length > 1) {
    dashed(context, pixel, () => context.strokeRect(x + last[0] - first[0], y + last[1] - first[1], width, height));
  }
}

/** Draws the outline of an unfinished box, or the circle that moves with a point. */
export function drawReach(context, number, pixel, shape) {
  context.strokeStyle = color(number, 0.7);
  context.lineWidth = pixel;
  dashed(context, pixel, () => {
    context.beginPath();
    shape();
    context.stroke();
  });
}

function dashed(context, pixel, draw) {
  context.setLineDash([4 * pixel, 4 * pixel]);
  draw();
  context.setLineDash([]);
}
