// The geometry of tracks, without drawing. A track is {points, box}: a list of points [x, y], and the area
// [x, y, width, height] that moves along the track, or null; all in pixels of the canvas.

/**
 * Returns the tracks in a text, in any form that vc_core/extract/motion/tracks.py reads: one list of points or a list of
 * tracks, each a list of points or {"box": {"x", "y", "width", "height"}, "path": points}; points as {"x": 1, "y": 2} or
 * [1, 2]; also with Python's quotes, or as a list of texts. Null for anything else; an empty list means no tracks.
 */
export function parseTracks(text) {
  let content;
  try {
    content = typeof text === "string" ? JSON.parse(text.trim().replaceAll("'", '"') || "[]") : text;
  } catch {
    return null;
  }
  if (content?.box !== undefined) content = [content];
  if (!Array.isArray(content)) return null;
  if (!content.length) return [];
  if (content.every((item) => typeof item === "string")) {
    const parsed = content.map(parseTracks);
    return parsed.includes(null) ? null : parsed.flat();
  }
  const tracks = (asPoint(content[0]) ? [content] : content).map(asTrack);
  return tracks.includes(null) ? null : tracks;
}

function asTrack(item) {
  const boxed = item?.box !== undefined;
  const path = boxed ? item.path : item;
  const points = Array.isArray(path) ? path.map(asPoint) : [];
  const box = boxed ? asBox(item.box) : null;
  return points.length && !points.includes(null) && (box || !boxed) ? { points, box } : null;
}

function asPoint(item) {
  return numbers(Array.isArray(item) ? item : [item?.x, item?.y], 2);
}

function asBox(item) {
  const box = numbers(Array.isArray(item) ? item : [item?.x, item?.y, item?.width, item?.height], 4);
  return box && box[2] > 0 && box[3] > 0 ? box : null;
}

function numbers(list, count) {
  return list.length === count && list.every(Number.isFinite) ? list : null;
}

/** Returns the text of tracks: a list of points for one track without a box, else a list of tracks. One decimal. */
export function formatTracks(tracks) {
  const texts = tracks.map(({ points, box }) => {
    const path = `[${points.map((point) => formatted(["x", "y"], point)).join(", ")}]`;
    return box ? `{"box": ${formatted(["x", "y", "width", "height"], box)}, "path": ${path}}` : path;
  });
  return texts.length === 1 && !tracks[0].box ? texts[0] : `[${texts.join(",\n ")}]`;
}

function formatted(keys, values) {
  return `{${keys.map((key, i) => `"${key}": ${Math.round(values[i] * 10) / 10}`).join(", ")}}`;
}

/** Returns the size [width, height] of a canvas without a set size: the video's, or a guess that fits the tracks. */
export function likelySize(tracks, [width, height]) {
  const ends = tracks.map(({ box }) => (box ? [box[0] + box[2], box[1] + box[3]] : []));
  const reach = Math.max(0, ...tracks.flatMap(({ points }) => points.flat()), ...ends.flat());
  const guess = [64, 128, 256, 512, 1024, 2048].find((side) => side >= reach) ?? Math.ceil(reach);
  return [width || guess, height || guess];
}

/** Returns the tracks scaled from a canvas of size `from` to one of size `to`. */
export function onCanvas(tracks, from, to) {
  const [right, down] = [to[0] / from[0], to[1] / from[1]];
  return tracks.map(({ points, box }) => ({
    points: points.map(([x, y]) => [x * right, y * down]),
    box: box && [box[0] * right, box[1] * down, box[2] * right, box[3] * down],
  }));
}

/** Whether two sizes have the same aspect ratio, to 1 %. */
export function sameShape([width, height], [otherWidth, otherHeight]) {
  return Math.abs((width * otherHeight) / (height * otherWidth) - 1) < 0.01;
}

/** Returns how a size [width, height] fits centred inside another one, as large as possible: {scale, left, top}. */
export function fitInside([width, height], [outerWidth, outerHeight]) {
  const scale = Math.min(outerWidth / width, outerHeight / height);
  return { scale, left: (outerWidth - width * scale) / 2, top: (outerHeight - height * scale) / 2 };
}

/** Returns the area [x, y, width, height] of a canvas that stays visible if it covers a video of another shape. */
export function visibleArea([width, height], [videoWidth, videoHeight]) {
  const scale = Math.max(videoWidth / width, videoHeight / height);
  const [visibleWidth, visibleHeight] = [videoWidth / scale, videoHeight / scale];
  return [(width - visibleWidth) / 2, (height - visibleHeight) / 2, visibleWidth, visibleHeight];
}

export function clampTo([x, y], [width, height]) {
  return [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
}

function distance([ax, ay], [bx, by]) {
  return Math.hypot(ax - bx, ay - by);
}

/** Returns the nearest point within `reach` as {track, point} (indices), the active track's first; or null. */
export function nearestPoint(tracks, place, reach, active) {
  let best = null;
  tracks.forEach(({ points }, track) =>
    points.forEach((candidate, point) => {
      const gap = distance(candidate, place) - (track === active ? reach / 1000 : 0);
      if (gap <= reach && (!best || gap < best.gap)) best = { track, point, gap };
    }),
  );
  return best && { track: best.track, point: best.point };
}

/** Returns the distance of a place from the line between two points. */
export function distanceToSegment(place, [ax, ay], [bx, by]) {
  const [dx, dy] = [bx - ax, by - ay];
  const length = dx * dx + dy * dy;
  const along = length ? Math.min(1, Math.max(0, ((place[0] - ax) * dx + (place[1] - ay) * dy) / length)) : 0;
  return distance(place, [ax + along * dx, ay + along * dy]);
}

/** Returns the index for a new point in a track: on the line that is within reach, else at the end. */
export function insertionIndex(points, place, reach) {
  for (let i = 1; i < points.length; i++) {
    if (distanceToSegment(place, points[i - 1], points[i]) <= reach) return i;
  }
  return points.length;
}

/** Adds a point to a track, or to a new one; returns the tracks and the point's indices: {tracks, track, point}. */
export function withPoint(tracks, track, place, reach) {
  if (track >= tracks.length) {
    return { tracks: [...tracks, { points: [place], box: null }], track: tracks.length, point: 0 };
  }
  const { points, box } = tracks[track];
  const point = insertionIndex(points, place, reach);
  return { tracks: tracks.with(track, { points: points.toSpliced(point, 0, place), box }), track, point };
}

/** Returns the box [x, y, width, height] between two corners. */
export function boxBetween([ax, ay], [bx, by]) {
  return [Math.min(ax, bx), Math.min(ay, by), Math.abs(bx - ax), Math.abs(by - ay)];
}

/** Returns the tracks with a new box that does not move: its path is its centre. */
export function withBox(tracks, box) {
  return [...tracks, { points: [[box[0] + box[2] / 2, box[1] + box[3] / 2]], box }];
}

/** Returns the tracks with one point moved. A box moves with the first point of its path. */
export function withMoved(tracks, { track, point }, place) {
  const { points, box } = tracks[track];
  const [right, down] = [place[0] - points[0][0], place[1] - points[0][1]];
  const moved = box && !point ? [box[0] + right, box[1] + down, box[2], box[3]] : box;
  return tracks.with(track, { points: points.with(point, place), box: moved });
}

/** Returns the tracks without a point, and without its track if the point was the only one. */
export function withoutPoint(tracks, { track, point }) {
  const { points, box } = tracks[track];
  if (points.length === 1) return tracks.toSpliced(track, 1);
  return tracks.with(track, { points: points.toSpliced(point, 1), box });
}
